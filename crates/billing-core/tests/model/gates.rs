//! Simple gates as random actors: they obey §5 (check, then send, inside the window) and never lie about a fact, but
//! otherwise stall, restart, repeat, and report late what they looked up early.

use billing_core::*;

use crate::deck::{evidence, id16};
use crate::dice::Dice;
use crate::naive::Told;
use crate::provider::{Caller, Profile, Provider, Reply as Heard};

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    /// A command is on its way; what for.
    Asking(Box<Phase>),
    Queued,
    Leased {
        invoice: InvoiceId,
        token: FencingToken,
        open: Option<ChargeAttempt>,
    },
    /// Began at true time `since`; `object` to confirm; how often this run has sent under the key.
    Begun {
        invoice: InvoiceId,
        token: FencingToken,
        attempt: Box<ChargeAttempt>,
        since: u64,
        sends: u32,
        waits: bool,
    },
    /// Heard a plain answer.
    Heard {
        invoice: InvoiceId,
        token: FencingToken,
        attempt: Box<ChargeAttempt>,
        sends: u32,
        charged: Option<Reference>,
    },
    /// Looked the attempt up, and has not yet said what it saw.
    Looked {
        invoice: InvoiceId,
        token: FencingToken,
        key: IdempotencyKey,
        found: Option<Reference>,
    },
}

struct Gate {
    run: u64,
    session: SessionId,
    seq: u64,
    phase: Phase,
}

struct Mail {
    arrives_at: u64,
    caller: Option<Caller>,
    command: Command,
}

pub struct Gates {
    gates: Vec<Gate>,
    pub provider: Provider,
    mail: Vec<Mail>,
    invoices: Vec<InvoiceId>,
    next_session: u64,
    stalls: u64,
    restarts: u64,
    late: u64,
}

impl Gates {
    pub fn new(dice: &mut Dice, provider: Provider, invoices: Vec<InvoiceId>) -> Self {
        let many = dice.between(2, 5);
        let mut this = Self {
            gates: Vec::new(),
            provider,
            mail: Vec::new(),
            invoices,
            next_session: 1 << 32,
            stalls: dice.between(5, 50),
            restarts: dice.between(0, 8),
            late: dice.between(0, 30),
        };
        for _ in 0..many {
            let session = this.new_session();
            this.gates.push(Gate {
                run: 0,
                session,
                seq: 0,
                phase: Phase::Idle,
            });
        }
        this
    }

    fn new_session(&mut self) -> SessionId {
        self.next_session += 1;
        SessionId::new(id16(self.next_session))
    }

    /// One step of one gate, provider or person. What they ask of the ledger goes on its way.
    pub fn step(&mut self, dice: &mut Dice, now: u64, views: &[(InvoiceId, Option<InvoiceView>)]) {
        for reply in self.provider.deliver(dice, now) {
            if let Some(movement) = &reply.moved {
                let times = *dice.pick(&[0, 0, 1, 1, 2]);
                for _ in 0..times {
                    let outcome = Outcome::Charged(charged(movement.reference.clone()));
                    let late = dice.between(0, 60_000);
                    self.post(
                        now + late,
                        None,
                        settle(FencingToken::NONE, &movement.key, outcome),
                    );
                }
            }
            self.hear(dice, &reply);
        }
        if dice.percent(3) {
            self.person(dice, now, views);
        }
        for at in 0..self.gates.len() {
            if dice.below(100) < self.stalls {
                continue;
            }
            if dice.below(1_000) < self.restarts * 5 {
                self.restart(dice, at);
            } else {
                self.act(dice, now, at, views);
            }
        }
    }

    /// A name whose invoice is over makes room for a new one; whoever works on the old one goes on.
    pub fn replace(&mut self, at: usize, invoice: &InvoiceId) {
        self.invoices[at] = invoice.clone();
    }

    /// What has reached the ledger's door by now.
    pub fn arrived(&mut self, now: u64) -> Vec<(Option<Caller>, Command)> {
        let (due, waiting): (Vec<Mail>, Vec<Mail>) = std::mem::take(&mut self.mail)
            .into_iter()
            .partition(|mail| mail.arrives_at <= now);
        self.mail = waiting;
        due.into_iter()
            .map(|mail| (mail.caller, mail.command))
            .collect()
    }

    fn post(&mut self, arrives_at: u64, caller: Option<Caller>, command: Command) {
        self.mail.push(Mail {
            arrives_at,
            caller,
            command,
        });
    }

    fn ask(&mut self, dice: &mut Dice, now: u64, at: usize, command: Command, then: Phase) {
        let gate = &mut self.gates[at];
        gate.phase = Phase::Asking(Box::new(then));
        let caller = Some((at, gate.run));
        let delay = if dice.below(100) < self.late {
            dice.between(1, 20_000)
        } else {
            0
        };
        if dice.percent(4) {
            self.post(now + dice.between(0, 40_000), None, command.clone()); // A copy, later.
        }
        if !dice.percent(2) {
            self.post(now + delay, caller, command);
        }
    }

    /// The process ends and starts again, and knows at most its token; or another one is started beside it with that token.
    fn restart(&mut self, dice: &mut Dice, at: usize) {
        let held = match &self.gates[at].phase {
            Phase::Leased { invoice, token, .. }
            | Phase::Begun { invoice, token, .. }
            | Phase::Heard { invoice, token, .. }
            | Phase::Looked { invoice, token, .. } => Some((invoice.clone(), *token)),
            Phase::Asking(then) => match &**then {
                Phase::Begun { invoice, token, .. } => Some((invoice.clone(), *token)),
                _ => None,
            },
            Phase::Idle | Phase::Queued => None,
        };
        let again = match held {
            Some((invoice, token)) if dice.percent(70) => Phase::Leased {
                invoice,
                token,
                open: None,
            },
            _ => Phase::Idle,
        };
        let idle = self
            .gates
            .iter()
            .position(|gate| matches!(gate.phase, Phase::Idle));
        let at = idle.filter(|_| dice.percent(50)).unwrap_or(at);
        self.gates[at].run += 1;
        self.gates[at].phase = again;
    }

    fn act(
        &mut self,
        dice: &mut Dice,
        now: u64,
        at: usize,
        views: &[(InvoiceId, Option<InvoiceView>)],
    ) {
        let (session, seq) = (self.gates[at].session, self.gates[at].seq);
        match self.gates[at].phase.clone() {
            Phase::Idle => self.look_for_work(dice, now, at),
            Phase::Asking(_) => {
                if dice.percent(5) {
                    self.gates[at].run += 1; // Gave up waiting for the answer; it may come to nobody.
                    self.gates[at].phase = Phase::Idle;
                    if dice.percent(50) && seq > 0 {
                        let by_seq = ReleaseLease::BySeq {
                            session,
                            seq: Seq::new(seq).expect("from 1"),
                        };
                        self.post(now, None, Command::ReleaseLease(by_seq));
                    }
                } else if dice.percent(20) {
                    self.post(now, None, Command::KeepAlive(KeepAlive { session }));
                }
            }
            Phase::Queued => {
                if dice.percent(5) {
                    let seq = Seq::new(seq).expect("asked");
                    self.gates[at].phase = Phase::Idle;
                    self.gates[at].run += 1;
                    self.post(
                        now,
                        None,
                        Command::ReleaseLease(ReleaseLease::BySeq { session, seq }),
                    );
                } else if dice.percent(20) {
                    self.post(now, None, Command::KeepAlive(KeepAlive { session }));
                }
            }
            Phase::Leased {
                invoice,
                token,
                open,
            } => self.work(dice, now, at, (invoice, token), open, views),
            Phase::Begun {
                invoice,
                token,
                attempt,
                since,
                sends,
                waits,
            } => {
                self.charge(
                    dice,
                    now,
                    at,
                    (invoice, token),
                    attempt,
                    (since, sends, waits),
                );
            }
            Phase::Heard {
                token,
                attempt,
                sends,
                charged: reference,
                ..
            } => {
                let outcome = match reference {
                    Some(reference) => Outcome::Charged(charged(reference)),
                    None => Outcome::Declined {
                        code: DeclineCode::new("insufficient_funds").expect("short"),
                        retryable: dice.percent(90),
                        finality: self.finality(dice, &attempt, sends),
                    },
                };
                let command = settle(token, &attempt.idempotency_key, outcome);
                self.ask(dice, now, at, command, Phase::Idle);
            }
            Phase::Looked {
                token, key, found, ..
            } => {
                let outcome = Outcome::LookedUp(found.map(charged));
                self.ask(dice, now, at, settle(token, &key, outcome), Phase::Idle);
            }
        }
    }

    /// What this gate knows to be true of a decline it heard.
    fn finality(&self, dice: &mut Dice, attempt: &ChargeAttempt, sends: u32) -> Finality {
        let sole = sends == 1 && !attempt.taken_over;
        match self.provider.profile {
            _ if dice.percent(10) => Finality::None,
            Profile::Sticky if dice.percent(70) => Finality::Sticky,
            Profile::Objects => Finality::Object,
            _ if sole => Finality::SoleSend,
            Profile::Loose | Profile::Keyless | Profile::Sticky => Finality::None,
        }
    }

    fn look_for_work(&mut self, dice: &mut Dice, now: u64, at: usize) {
        if self.gates[at].seq == 0 {
            let open = OpenSession {
                session: self.gates[at].session,
                holder: HolderId::new(["gate-1", "gate-2"][dice.index(2)]).expect("short"),
                ttl: TtlMs::new(*dice.pick(&[1_000, 4_000, 20_000])).expect("in bounds"),
            };
            self.gates[at].seq = 1;
            self.ask(dice, now, at, Command::OpenSession(open), Phase::Idle);
            return;
        }
        self.gates[at].seq += 1;
        let session = self.gates[at].session;
        let seq = Seq::new(self.gates[at].seq).expect("from 1");
        let done_below = self.gates[at].seq;
        let command = if dice.percent(40) {
            let max = ClaimMax::new(dice.between(1, 2)).expect("in bounds");
            Command::ClaimInvoices(ClaimInvoices {
                session,
                seq,
                done_below,
                max,
            })
        } else {
            let wait = WaitMs::new(*dice.pick(&[0, 0, 3_000, 30_000])).expect("in bounds");
            let ttl = if dice.percent(20) {
                TtlMs::new(1_000).ok()
            } else {
                None
            };
            let requester = Requester::Session {
                session,
                seq,
                done_below,
                ttl,
            };
            let invoice = dice.pick(&self.invoices).clone();
            Command::AcquireLease(AcquireLease {
                invoice,
                requester,
                wait,
            })
        };
        self.ask(dice, now, at, command, Phase::Idle);
    }

    fn work(
        &mut self,
        dice: &mut Dice,
        now: u64,
        at: usize,
        (invoice, token): (InvoiceId, FencingToken),
        open: Option<ChargeAttempt>,
        views: &[(InvoiceId, Option<InvoiceView>)],
    ) {
        if dice.percent(5) {
            let release = ReleaseLease::ByToken { invoice, token };
            self.ask(dice, now, at, Command::ReleaseLease(release), Phase::Idle);
            return;
        }
        // A restarted gate asks the cluster what it continues.
        let open = open.or_else(|| {
            let view = views.iter().find(|(id, _)| *id == invoice)?.1.as_ref()?;
            view.open_attempt.clone()
        });
        if let Some(attempt) = &open {
            let over = attempt.state == AttemptState::Closing || attempt.send_within_ms == 0;
            let asked =
                self.provider.terms.can_look_up && (over && dice.percent(80) || dice.percent(15));
            if asked {
                let key = attempt.idempotency_key.clone();
                let found = self
                    .provider
                    .look_up(&key, attempt.provider_object.as_ref(), now)
                    .map(|movement| movement.reference);
                self.gates[at].phase = Phase::Looked {
                    invoice,
                    token,
                    key,
                    found,
                };
                return;
            }
        }
        let terms = std::sync::Arc::clone(&self.provider.terms);
        let begin = BeginCharge {
            invoice: invoice.clone(),
            token,
            terms,
        };
        let then = Phase::Begun {
            invoice,
            token,
            attempt: Box::new(nothing_begun(open)),
            since: now, // Read before the command is sent.
            sends: 0,
            waits: false,
        };
        self.ask(dice, now, at, Command::BeginCharge(begin), then);
    }

    fn charge(
        &mut self,
        dice: &mut Dice,
        now: u64,
        at: usize,
        (invoice, token): (InvoiceId, FencingToken),
        attempt: Box<ChargeAttempt>,
        (since, sends, waits): (u64, u32, bool),
    ) {
        let objects = self.provider.profile == Profile::Objects;
        let key = attempt.idempotency_key.clone();
        let stay = |attempt: Box<ChargeAttempt>, sends, waits| Phase::Begun {
            invoice: invoice.clone(),
            token,
            attempt,
            since,
            sends,
            waits,
        };
        if objects && attempt.provider_object.is_none() {
            let object = self.provider.create();
            let attach = AttachProviderObject {
                invoice: invoice.clone(),
                token,
                object,
            };
            self.ask(
                dice,
                now,
                at,
                Command::AttachProviderObject(attach),
                stay(attempt, sends, false),
            );
            return;
        }
        if waits && !dice.percent(15) {
            return;
        }
        if let Some(object) = attempt
            .provider_object
            .as_ref()
            .filter(|_| objects && dice.percent(6))
        {
            if self.provider.cancel(object) {
                let outcome = Outcome::Cancelled {
                    object: object.clone(),
                };
                let token = if dice.percent(50) {
                    token
                } else {
                    FencingToken::NONE
                };
                self.ask(dice, now, at, settle(token, &key, outcome), Phase::Idle);
            }
            return;
        }
        let inside = now < since + attempt.send_within_ms;
        // Without keys a second send is a second charge: one send in all, by the opener.
        let may_repeat =
            self.provider.profile != Profile::Keyless || (sends == 0 && !attempt.taken_over);
        if inside && may_repeat && (sends == 0 || dice.percent(50)) {
            let run = self.gates[at].run;
            self.provider
                .send(dice, now, key, attempt.provider_object.clone(), (at, run));
            self.gates[at].phase = stay(attempt, sends + 1, true);
        } else {
            let command = settle(token, &key, Outcome::Unknown { detail: None });
            self.ask(dice, now, at, command, Phase::Idle);
        }
    }

    /// A provider's reply reaches the run that waits for it, or nobody.
    fn hear(&mut self, dice: &mut Dice, reply: &Heard) {
        let (at, run) = reply.caller;
        let gate = &mut self.gates[at];
        if gate.run != run || dice.percent(25) {
            return;
        }
        let Phase::Begun {
            invoice,
            token,
            attempt,
            sends,
            waits: true,
            ..
        } = gate.phase.clone()
        else {
            return;
        };
        let Some(yes) = reply
            .charged
            .filter(|_| attempt.idempotency_key == reply.key)
        else {
            return; // Of no use, or to an earlier question.
        };
        let key = &attempt.idempotency_key;
        let object = attempt.provider_object.as_ref();
        let booked = self
            .provider
            .look_up(key, object, u64::MAX)
            .map(|movement| movement.reference);
        gate.phase = match (yes, booked) {
            (true, None) => return,
            (true, reference) => Phase::Heard {
                invoice,
                token,
                attempt,
                sends,
                charged: reference,
            },
            (false, _) => Phase::Heard {
                invoice,
                token,
                attempt,
                sends,
                charged: None,
            },
        };
    }

    /// The ledger's answer reaches the gate that asked, or is lost.
    pub fn answer(&mut self, dice: &mut Dice, (at, run): Caller, told: &Told) {
        if self.gates[at].run != run || dice.percent(4) {
            return;
        }
        let Phase::Asking(then) = self.gates[at].phase.clone() else {
            return;
        };
        self.gates[at].phase = match (told, *then) {
            (Ok(Reply::Leased(leased)), _) => {
                self.leased(&leased.lease, leased.open_attempt.as_deref().cloned())
            }
            (Ok(Reply::Claimed(claimed)), _) => match claimed.leased.last() {
                Some(one) => self.leased(&one.lease, one.open_attempt.clone()),
                None => Phase::Idle,
            },
            (Ok(Reply::Queued), _) => Phase::Queued,
            (
                Ok(Reply::Begun(attempt)),
                Phase::Begun {
                    invoice,
                    token,
                    since,
                    ..
                },
            ) => {
                let attempt = Box::new(attempt.clone());
                Phase::Begun {
                    invoice,
                    token,
                    attempt: *attempt,
                    since,
                    sends: 0,
                    waits: false,
                }
            }
            (
                Ok(Reply::Attached { object }),
                Phase::Begun {
                    invoice,
                    token,
                    mut attempt,
                    since,
                    sends,
                    ..
                },
            ) => {
                attempt.provider_object = Some(object.clone());
                Phase::Begun {
                    invoice,
                    token,
                    attempt,
                    since,
                    sends,
                    waits: false,
                }
            }
            (Err(Rejection::SessionEnded { .. } | Rejection::SessionNotFound { .. }), _) => {
                self.gates[at].session = self.new_session();
                self.gates[at].seq = 0;
                Phase::Idle
            }
            _ => Phase::Idle,
        };
    }

    pub fn waiter_answer(&mut self, answer: &WaiterAnswer) {
        let found = self.gates.iter().position(|gate| {
            gate.session == answer.session
                && gate.seq == u64::from(answer.seq)
                && matches!(gate.phase, Phase::Queued)
        });
        if let Some(at) = found {
            self.gates[at].phase = match &answer.result {
                Ok(Reply::Leased(leased)) => {
                    self.leased(&leased.lease, leased.open_attempt.as_deref().cloned())
                }
                _ => Phase::Idle,
            };
        }
    }

    fn leased(&self, lease: &LeaseView, open: Option<ChargeAttempt>) -> Phase {
        Phase::Leased {
            invoice: lease.invoice.clone(),
            token: lease.token,
            open,
        }
    }

    /// A person who reads the provider's books and says what they show, or lets a failed one be tried again.
    fn person(&mut self, dice: &mut Dice, now: u64, views: &[(InvoiceId, Option<InvoiceView>)]) {
        let (id, Some(view)) = dice.pick(views) else {
            return;
        };
        let Some(attempt) = &view.open_attempt else {
            let requeue = RequeueInvoice {
                invoice: id.clone(),
                reason: Some(evidence("try again")),
            };
            self.post(now, None, Command::RequeueInvoice(requeue));
            return;
        };
        let key = attempt.idempotency_key.clone();
        let verdict = match self
            .provider
            .look_up(&key, attempt.provider_object.as_ref(), now)
        {
            Some(movement) => Verdict::Charged(charged(movement.reference)),
            None => Verdict::NotCharged,
        };
        let evidence = evidence("read the books");
        self.post(
            now,
            None,
            Command::ResolveCharge(Box::new(ResolveCharge {
                invoice: id.clone(),
                key,
                verdict,
                evidence,
            })),
        );
    }
}

/// Stands in until the ledger's answer says what was begun.
fn nothing_begun(open: Option<ChargeAttempt>) -> ChargeAttempt {
    open.unwrap_or_else(|| ChargeAttempt {
        number: AttemptNumber::new(1).expect("in bounds"),
        idempotency_key: IdempotencyKey {
            ledger: LedgerId::new(crate::deck::LEDGER).expect("short"),
            number: AttemptNumber::new(1).expect("in bounds"),
            invoice: InvoiceId::new("none").expect("short"),
        },
        token: FencingToken::NONE,
        state: AttemptState::Open,
        send_within_ms: 0,
        provider_object: None,
        taken_over: true,
        terms: None,
        look_up_in_ms: 0,
    })
}

fn charged(reference: Reference) -> Charged {
    Charged {
        reference,
        amount: None,
        currency: None,
    }
}

fn settle(token: FencingToken, key: &IdempotencyKey, outcome: Outcome) -> Command {
    Command::SettleCharge(Box::new(SettleCharge {
        invoice: key.invoice.clone(),
        token,
        key: key.clone(),
        outcome,
    }))
}
