//! Tells a step to people. Decides nothing.

use crate::model::{Money, Step};
use crate::state::{Attempt, Memory, NONE, NUMBERS, Object, Phase, Send, State, number_of, stage};

impl Money {
    /// The step in words, as it is seen from outside.
    #[must_use]
    pub fn say(&self, before: &State, step: Step, after: &State) -> String {
        let key = |opening: u8| self.key_name(opening);
        let doing = |worker: u8| before.workers[usize::from(worker)];
        let then = |worker: u8| after.workers[usize::from(worker)];
        let who = |worker: u8| format!("w{}", worker + 1);
        let object = |object: u8| char::from(b'A' + object);
        let stale = |worker: u8| {
            if doing(worker).current {
                ""
            } else {
                ", with a stale token"
            }
        };
        let live = before.live_opening().map(|opening| opening as u8);
        let name = live.map_or_else(|| "nothing".to_owned(), key);
        match step {
            Step::Acquire(worker) => format!("{} acquires the lease", who(worker)),
            Step::AcquireOldToken(worker, old) => format!(
                "{} acquires the lease, with the token that {} was granted before the restore",
                who(worker),
                who(old)
            ),
            Step::LeaseEnds => "the lease ends".to_owned(),
            Step::Begin(worker) => {
                let opening = then(worker).opening;
                let opens = Some(opening) != live
                    || !before
                        .ledger
                        .live_all()
                        .any(|number| before.ledger.openings[number] == opening);
                let window = if then(worker).window_wrong {
                    ", and is told that it may still be sent"
                } else {
                    ""
                };
                let verb = if opens { "begins" } else { "continues" };
                format!(
                    "{} {verb} {}{}{window}",
                    who(worker),
                    key(opening),
                    stale(worker)
                )
            }
            Step::Create(worker) => {
                format!(
                    "{} creates object {}",
                    who(worker),
                    object(then(worker).object)
                )
            }
            Step::Attach(worker) => {
                let (ours, recorded) = (doing(worker).object, then(worker).object);
                if ours == recorded && before.ledger.object != ours {
                    format!(
                        "{} attaches object {}{}",
                        who(worker),
                        object(ours),
                        stale(worker)
                    )
                } else {
                    format!(
                        "{} wants to attach object {}, and is answered with {}",
                        who(worker),
                        object(ours),
                        object(recorded)
                    )
                }
            }
            Step::Send(worker) => {
                let sent = then(worker);
                let again = if sent.sends > 1 { " again" } else { "" };
                let through = if sent.object == NONE {
                    String::new()
                } else {
                    format!(", a confirmation of object {}", object(sent.object))
                };
                let in_time = before.stages[usize::from(sent.opening)] == stage::OPEN;
                let late = if in_time || self.config.timeless() {
                    ""
                } else {
                    ", after not_after"
                };
                format!(
                    "{} sends {}{again}{through}{late}",
                    who(worker),
                    key(sent.opening)
                )
            }
            Step::GiveUp(worker) => format!(
                "{} gives up waiting; its request is still on the way",
                who(worker)
            ),
            Step::Answer(worker, approves) => {
                let opening = doing(worker).opening;
                let came = self.came(before, after, (opening, doing(worker).object), approves);
                format!(
                    "the provider answers {}'s {}: {came}",
                    who(worker),
                    key(opening)
                )
            }
            Step::Land(which, approves) => {
                let send: Send = before.loose[usize::from(which)];
                let came = self.came(before, after, (send.opening, send.object), approves);
                format!(
                    "a request under {} arrives, whose sender is gone: {came}",
                    key(send.opening)
                )
            }
            Step::Decline(worker) => {
                let number = number_of(doing(worker).opening);
                let verdict = match after.ledger.attempts[number] {
                    Attempt::Dead => "the attempt is dead",
                    _ => "the attempt is closing",
                };
                format!(
                    "{} settles: declined{}; {verdict}",
                    who(worker),
                    stale(worker)
                )
            }
            Step::LookUp(worker) => format!("{} looks {name} up: nothing, so far", who(worker)),
            Step::ReportNothing(worker) => {
                let number = number_of(doing(worker).opening);
                let verdict = match after.ledger.attempts[number] {
                    Attempt::Dead => "the attempt is dead",
                    _ => "which proves nothing",
                };
                format!(
                    "{} reports what it saw, nothing{}; {verdict}",
                    who(worker),
                    stale(worker)
                )
            }
            Step::Restart(worker) => {
                format!("the gate of {} restarts under the same lease", who(worker))
            }
            Step::SecondGate(worker) => {
                format!("{} is a second gate under the same lease", who(worker))
            }
            Step::Dies(worker) => format!("{} dies", who(worker)),
            Step::ChargeReported(at) => format!(
                "the charge under {} is reported; the invoice is {}",
                key(at),
                phase(after.ledger.phase)
            ),
            Step::CancelObject(at) => {
                format!("somebody cancels object {} at the provider", object(at))
            }
            Step::CancelReported => "the cancelled object is reported".to_owned(),
            Step::TimePasses(opening) => {
                let passed = match after.stages[usize::from(opening)] {
                    stage::CLOSED => "not_after",
                    _ => "not_after + in_flight_max",
                };
                let still = if self.config.standstill && Some(opening) == live {
                    ", while ClusterTime stands still"
                } else {
                    ""
                };
                format!("{passed} of {} passes{still}", key(opening))
            }
            Step::ClusterTimeMoves => "ClusterTime goes on".to_owned(),
            Step::GoesToReview => format!("{name} got no answer; the invoice is in REVIEW"),
            Step::ClosingExpires => format!("{name} was closing, and dies of old age"),
            Step::PersonLooks => format!("a person reads the books: nothing under {name}, so far"),
            Step::NotCharged => format!("a person says that {name} was not charged"),
            Step::ChargeConfirmed => "a person confirms the recorded charge".to_owned(),
            Step::Requeue => "a person requeues the invoice".to_owned(),
            Step::Backup => "a backup is taken".to_owned(),
            Step::Restore => "the backup is restored".to_owned(),
            Step::AllowCharges => "the operator says AllowCharges".to_owned(),
            Step::KeyForgotten(at) => format!("the provider forgets {}", key(at)),
            Step::CreateForgotten(at) => {
                format!("the provider forgets what {} created", key(at))
            }
        }
    }

    /// What became of a request, by opening and object.
    fn came(
        &self,
        before: &State,
        after: &State,
        (opening, object): (u8, u8),
        approves: bool,
    ) -> &'static str {
        let object = (object != NONE).then(|| before.objects[usize::from(object)]);
        match (before.memory[self.key_of(opening)], object) {
            (Memory::Yes(_), _) => "charged, as before",
            (Memory::No(_), _) => "a decline, as before",
            (Memory::Nothing, _) if after.charges > before.charges => "CHARGED",
            (Memory::Nothing, Some(Object::Succeeded)) => "charged already",
            (Memory::Nothing, Some(Object::Cancelled | Object::Absent)) => "an error",
            (Memory::Nothing, Some(Object::Confirmable) | None) if approves => "nothing",
            (Memory::Nothing, Some(Object::Confirmable) | None) => "a decline",
        }
    }

    fn key_name(&self, opening: u8) -> String {
        let number = number_of(opening) + 1;
        let again = usize::from(opening) >= NUMBERS && self.config.new_keys_after_restore;
        let prime = if again { "'" } else { "" };
        format!("K{number}{prime}")
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Ready => "PENDING",
        Phase::Paid => "PAID",
        Phase::Review => "in REVIEW",
        Phase::Failed => "FAILED",
    }
}
