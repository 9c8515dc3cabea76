//! Draws commands as careless clients would send them: wrong tokens and keys, old seqs, doubled and late copies, ended
//! sessions. An honest deck leaves out what would lie about money, so that it can be mixed with gates that move some.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use billing_core::*;

use crate::dice::Dice;
use crate::naive::{Model, Rest};

pub const LEDGER: &str = "model";
const HISTORY: usize = 64;

const KINDS: usize = 23;

pub struct Deck {
    weights: [u64; KINDS],
    honest: bool,
    invoices: Vec<InvoiceId>,
    sessions: Vec<SessionId>,
    gone: Vec<SessionId>,
    next_id: u64,
    requests: Vec<RequestId>,
    seqs: BTreeMap<SessionId, u64>,
    history: VecDeque<Command>,
    terms: Vec<Arc<Terms>>,
    objects: u64,
    references: u64,
    slow_answers: u64,
    /// In percent: how often a command is the next sensible step of some invoice, so that deep states are reached.
    sense: u64,
}

pub fn id16(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub fn evidence(text: &str) -> Evidence {
    Evidence::new(text).expect("short")
}

pub fn terms(
    provider: &str,
    account: &str,
    live: bool,
    print: &[u8],
    times: (u64, u64),
    can: (bool, bool),
) -> Arc<Terms> {
    Arc::new(Terms {
        provider: ProviderId::new(provider).expect("short"),
        account: AccountId::new(account).expect("short"),
        live,
        fingerprint: Fingerprint::new(print).expect("short"),
        valid_for: ValidForMs::new(times.0).expect("in bounds"),
        in_flight_max: InFlightMs::new(times.1).expect("in bounds"),
        can_look_up: can.0,
        sticky: can.1,
    })
}

impl Deck {
    pub fn new(dice: &mut Dice, honest: bool, invoices: Vec<InvoiceId>, first_id: u64) -> Self {
        let mut weights = [0; KINDS];
        for weight in &mut weights {
            *weight = *dice.pick(&[1, 2, 5, 10, 20]);
        }
        // What ends everything comes seldom, or nothing else is ever seen.
        for (kind, most) in [
            (2, 4),
            (8, 6),
            (13, 4),
            (14, 3),
            (17, 3),
            (18, 2),
            (19, 2),
            (21, 2),
        ] {
            weights[kind] = weights[kind].min(most);
        }
        if dice.percent(if honest { 90 } else { 70 }) {
            weights[21] = 0;
        }
        let valid_for = *dice.pick(&[1_000, 4_000, 20_000]);
        let in_flight = *dice.pick(&[0, 500, 5_000]);
        let times = (valid_for, in_flight);
        let mut choices = vec![
            terms(
                "stripe",
                "acct-1",
                true,
                b"a",
                times,
                (dice.percent(60), dice.percent(50)),
            ),
            terms(
                "stripe",
                "acct-1",
                true,
                b"a",
                times,
                (dice.percent(60), dice.percent(50)),
            ),
        ];
        let usual = choices[0].clone();
        for _ in 0..5 {
            choices.push(usual.clone());
        }
        choices.push(terms("stripe", "acct-1", true, b"b", times, (true, true)));
        choices.push(terms("stripe", "acct-2", true, b"a", times, (true, true)));
        choices.push(terms("stripe", "acct-1", false, b"a", times, (true, true)));
        choices.push(terms("adyen", "acct-1", true, b"a", times, (false, false)));
        choices.push(Arc::new(Terms::manual()));
        let sessions = dice.between(2, 6);
        Self {
            weights,
            honest,
            invoices,
            sessions: (0..sessions)
                .map(|n| SessionId::new(id16(first_id + n)))
                .collect(),
            gone: Vec::new(),
            next_id: first_id + sessions,
            requests: Vec::new(),
            seqs: BTreeMap::new(),
            history: VecDeque::new(),
            terms: choices,
            objects: dice.between(1, 3),
            references: dice.between(1, 6),
            slow_answers: dice.between(0, 10),
            sense: dice.between(20, 90),
        }
    }

    pub fn draw(&mut self, dice: &mut Dice, model: &Model) -> Command {
        if dice.percent(6) && !self.history.is_empty() {
            let at = dice.index(self.history.len());
            return self.history[at].clone(); // Doubled, and late.
        }
        let mut command = self.fresh(dice, model);
        if dice.percent(15) {
            command = self.many(dice, model, command);
        }
        // A person reads the answer to a word of theirs; nothing repeats it.
        if !matches!(command, Command::Restore(_) | Command::ResolveCharge(_)) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(command.clone());
        }
        command
    }

    /// This command and more of its kind as one, where there is such a command.
    fn many(&mut self, dice: &mut Dice, model: &Model, first: Command) -> Command {
        let more = dice.between(0, 4);
        match first {
            Command::AcquireLease(first) => {
                let mut items = vec![first];
                items.extend((0..more).map(|_| {
                    let invoice = dice.pick(&self.invoices).clone();
                    self.acquire(dice, model, invoice)
                }));
                Command::AcquireLeases(items)
            }
            Command::RenewLease(first) => {
                let mut items = vec![first];
                items.extend((0..more).map(|_| self.renew(dice, model)));
                Command::RenewLeases(items)
            }
            Command::ReleaseLease(first) => {
                let mut items = vec![first];
                items.extend((0..more).map(|_| self.release(dice, model)));
                Command::ReleaseLeases(items)
            }
            other => other,
        }
    }

    fn renew(&self, dice: &mut Dice, model: &Model) -> RenewLease {
        let invoice = dice.pick(&self.invoices).clone();
        let token = self.token(dice, model, &invoice);
        RenewLease {
            invoice,
            token,
            ttl: self.own_ttl(dice),
        }
    }

    fn release(&mut self, dice: &mut Dice, model: &Model) -> ReleaseLease {
        if dice.percent(50) {
            let (session, seq) = self.old_slot(dice, model);
            return ReleaseLease::BySeq { session, seq };
        }
        let invoice = dice.pick(&self.invoices).clone();
        let token = self.token(dice, model, &invoice);
        ReleaseLease::ByToken { invoice, token }
    }

    fn fresh(&mut self, dice: &mut Dice, model: &Model) -> Command {
        let invoice = dice.pick(&self.invoices).clone();
        if dice.below(100) < self.sense {
            return self.step(dice, model, invoice);
        }
        match dice.weighted(&self.weights) {
            0 => self.open(dice, model),
            1 => Command::KeepAlive(KeepAlive {
                session: self.session(dice, model),
            }),
            2 => Command::CloseSession(CloseSession {
                session: self.session(dice, model),
            }),
            3 => Command::AcquireLease(self.acquire(dice, model, invoice)),
            4 => self.acquire_implicit(dice, invoice),
            5 => {
                let (session, seq) = self.old_slot(dice, model);
                Command::WithdrawWaiter(WithdrawWaiter { session, seq })
            }
            6 => Command::RenewLease(self.renew(dice, model)),
            7 => {
                let token = self.token(dice, model, &invoice);
                Command::ReleaseLease(ReleaseLease::ByToken { invoice, token })
            }
            8 => {
                let (session, seq) = self.old_slot(dice, model);
                Command::ReleaseLease(ReleaseLease::BySeq { session, seq })
            }
            9 => {
                let session = self.session(dice, model);
                let (seq, done_below) = self.seq(dice, session);
                let max = ClaimMax::new(dice.between(1, 5)).expect("in bounds");
                Command::ClaimInvoices(ClaimInvoices {
                    session,
                    seq,
                    done_below,
                    max,
                })
            }
            10 | 11 => self.submit(dice, model, invoice),
            12 => self.begin(dice, model, invoice),
            13 => Command::CancelInvoice(CancelInvoice {
                invoice,
                reason: None,
            }),
            14 | 22 => Command::RequeueInvoice(RequeueInvoice {
                invoice,
                reason: None,
            }),
            15 => self.attach(dice, model, invoice),
            16 => self.settle(dice, model, invoice),
            17 => self.resolve(dice, model, invoice),
            18 => Command::ForceRelease(ForceRelease {
                invoice,
                reason: evidence("stuck"),
            }),
            19 => Command::PauseProvider(PauseProvider {
                provider: dice.pick(&self.terms).provider.clone(),
                paused: dice.percent(15),
                reason: evidence("outage"),
            }),
            20 => Command::Tick,
            _ => match dice.below(3) {
                0 => Command::Bootstrap(Bootstrap {
                    ledger_id: LedgerId::new(LEDGER).expect("short"),
                    no_prior_charges: dice.percent(50),
                }),
                1 => Command::Restore(Restore {
                    reason: evidence("disk lost"),
                }),
                _ => Command::AllowCharges(AllowCharges {
                    evidence: evidence("compared"),
                }),
            },
        }
    }

    /// What somebody who means well would ask for next; an honest deck leaves money to the gates.
    fn step(&mut self, dice: &mut Dice, model: &Model, id: InvoiceId) -> Command {
        if model.ledger_id.is_none() {
            let ledger_id = LedgerId::new(LEDGER).expect("short");
            let no_prior_charges = dice.percent(50);
            return Command::Bootstrap(Bootstrap {
                ledger_id,
                no_prior_charges,
            });
        }
        if !model.charges_allowed && dice.percent(2) {
            return Command::AllowCharges(AllowCharges {
                evidence: evidence("compared"),
            });
        }
        let known = model.invoices.get(&id);
        let Some(invoice) = known.filter(|invoice| invoice.bill.is_some()) else {
            return self.submit(dice, model, id);
        };
        match &invoice.rest {
            Some(Rest::Paid) => return self.keep_alive(dice, model),
            Some(_) if dice.percent(20) => return self.resolve(dice, model, id),
            Some(_) => {
                return Command::RequeueInvoice(RequeueInvoice {
                    invoice: id,
                    reason: None,
                });
            }
            None => {}
        }
        let live = invoice.live().map(|attempt| attempt.state);
        if invoice.lease.is_none() {
            return match dice.below(10) {
                0 if live.is_some() => self.resolve(dice, model, id),
                1..=3 => self.keep_alive(dice, model),
                4 => self.acquire_implicit(dice, id),
                _ => Command::AcquireLease(self.acquire(dice, model, id)),
            };
        }
        match (live, dice.below(20)) {
            (_, 0..=3) => self.keep_alive(dice, model),
            (_, 4) => Command::AcquireLease(self.acquire(dice, model, id)), // Joins the queue.
            (Some(_), _) if self.honest => self.settle(dice, model, id),
            (None, _) | (Some(AttemptState::Open), 5..=6) if !self.honest || dice.percent(20) => {
                self.begin(dice, model, id)
            }
            (Some(AttemptState::Open), 7..=8) => self.attach(dice, model, id),
            (_, 9) => {
                let token = self.token(dice, model, &id);
                Command::ReleaseLease(ReleaseLease::ByToken { invoice: id, token })
            }
            (Some(_), _) => self.settle(dice, model, id),
            (None, _) => Command::Tick,
        }
    }

    fn keep_alive(&mut self, dice: &mut Dice, model: &Model) -> Command {
        let session = self.session(dice, model);
        if !model.is_alive(session) {
            return self.open(dice, model);
        }
        Command::KeepAlive(KeepAlive { session })
    }

    /// In an honest deck: what the gates' provider is known to do, or the same of another account.
    pub fn use_terms(&mut self, terms: &Arc<Terms>) {
        let other = Terms {
            account: AccountId::new("acct-2").expect("short"),
            ..Terms::clone(terms)
        };
        self.terms = vec![Arc::clone(terms); 9];
        self.terms.push(Arc::new(other));
    }

    /// A name whose invoice is over makes room for a new one.
    pub fn replace(&mut self, at: usize, invoice: &InvoiceId) {
        self.invoices[at] = invoice.clone();
    }

    fn session(&mut self, dice: &mut Dice, model: &Model) -> SessionId {
        if dice.percent(4) && !self.gone.is_empty() {
            return *dice.pick(&self.gone);
        }
        let at = dice.index(self.sessions.len());
        if model.ended.contains_key(&self.sessions[at]) && dice.percent(80) {
            self.gone.push(self.sessions[at]);
            self.next_id += 1;
            self.sessions[at] = SessionId::new(id16(self.next_id));
        }
        self.sessions[at]
    }

    fn open(&mut self, dice: &mut Dice, model: &Model) -> Command {
        let session = self.session(dice, model);
        let (holder, ttl) = match model.sessions.get(&session) {
            Some(open) if dice.percent(90) => (open.holder.clone(), open.ttl),
            _ => (holder(dice), *dice.pick(&[1_000, 3_000, 10_000, 60_000])),
        };
        let ttl = TtlMs::new(ttl).expect("in bounds");
        Command::OpenSession(OpenSession {
            session,
            holder,
            ttl,
        })
    }

    fn own_ttl(&self, dice: &mut Dice) -> Option<TtlMs> {
        if dice.percent(60) {
            return None;
        }
        TtlMs::new(*dice.pick(&[1_000, 2_000, 8_000, 300_000])).ok()
    }

    /// Mostly the next; sometimes an old one, with whatever contents this command has.
    fn seq(&mut self, dice: &mut Dice, session: SessionId) -> (Seq, u64) {
        let next = self.seqs.entry(session).or_insert(0);
        let seq = if *next > 0 && dice.percent(8) {
            dice.between((*next).saturating_sub(12).max(1), *next)
        } else {
            let most = if dice.percent(5) { 3 } else { 1 };
            *next += dice.between(1, most);
            *next
        };
        let done_below = match dice.below(10) {
            0..=4 => 0,
            5..=8 => seq.saturating_sub(self.slow_answers),
            _ => dice.between(0, seq + 1),
        };
        (Seq::new(seq).expect("from 1"), done_below)
    }

    fn old_slot(&mut self, dice: &mut Dice, model: &Model) -> (SessionId, Seq) {
        if dice.percent(30) && !self.requests.is_empty() {
            return (dice.pick(&self.requests).session(), Seq::FIRST);
        }
        let session = self.session(dice, model);
        let last = self.seqs.get(&session).copied().unwrap_or(0);
        let seq = dice.between(last.saturating_sub(6).max(1), last + 2);
        (session, Seq::new(seq).expect("from 1"))
    }

    fn wait(&self, dice: &mut Dice) -> WaitMs {
        let ms = if dice.percent(40) {
            0
        } else {
            *dice.pick(&[1, 300, 2_000, 15_000, 300_000])
        };
        WaitMs::new(ms).expect("in bounds")
    }

    fn acquire(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> AcquireLease {
        let session = self.session(dice, model);
        let (seq, done_below) = self.seq(dice, session);
        let ttl = self.own_ttl(dice);
        AcquireLease {
            invoice,
            requester: Requester::Session {
                session,
                seq,
                done_below,
                ttl,
            },
            wait: self.wait(dice),
        }
    }

    fn acquire_implicit(&mut self, dice: &mut Dice, invoice: InvoiceId) -> Command {
        let request = if dice.percent(25) && !self.requests.is_empty() {
            *dice.pick(&self.requests)
        } else {
            self.next_id += 1;
            let request = RequestId::new(id16(self.next_id));
            if self.requests.len() >= 12 {
                self.requests.remove(0);
            }
            self.requests.push(request);
            request
        };
        let (holder, ttl) = (holder(dice), *dice.pick(&[1_000, 4_000, 20_000]));
        let ttl = TtlMs::new(ttl).expect("in bounds");
        Command::AcquireLease(AcquireLease {
            invoice,
            requester: Requester::Implicit {
                request,
                holder,
                ttl,
            },
            wait: self.wait(dice),
        })
    }

    fn token(&self, dice: &mut Dice, model: &Model, invoice: &InvoiceId) -> FencingToken {
        let last = model
            .invoices
            .get(invoice)
            .map_or(FencingToken::NONE, |invoice| invoice.token_last);
        match dice.below(100) {
            0..=84 => last,
            85..=94 => FencingToken(last.0.saturating_sub(dice.between(1, 20))),
            95..=96 => FencingToken::NONE,
            97..=98 => FencingToken(model.token_last),
            _ => FencingToken(model.token_last + dice.between(1, 5)),
        }
    }

    fn submit(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> Command {
        let odd = dice.percent(3);
        let recorded = model
            .invoices
            .get(&invoice)
            .and_then(|invoice| invoice.bill.clone());
        let due_at = match dice.below(4) {
            0 => Some(WallTime(model.wall + dice.between(0, 20_000))),
            1 => Some(WallTime(model.wall.saturating_sub(dice.between(0, 20_000)))),
            _ => None,
        };
        let amount = recorded.map_or(1_000 + dice.below(3), |bill| u64::from(bill.amount));
        let amount = if odd { amount + dice.below(2) } else { amount };
        let customer = if odd && dice.percent(50) {
            "cus-2"
        } else {
            "cus-1"
        };
        let currency = if odd && dice.percent(50) {
            "USD"
        } else {
            "EUR"
        };
        Command::SubmitInvoice(SubmitInvoice {
            invoice,
            customer: CustomerId::new(customer).expect("short"),
            amount: AmountMinor::new(amount).expect("in bounds"),
            currency: Currency::new(currency).expect("known"),
            due_at,
            priority: Priority::new(i64::from(dice.below(3) as u8) - 1).expect("in bounds"),
        })
    }

    fn begin(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> Command {
        let token = self.token(dice, model, &invoice);
        let running = model
            .invoices
            .get(&invoice)
            .and_then(|invoice| invoice.live())
            .and_then(|attempt| attempt.terms.clone())
            .filter(|_| dice.percent(70));
        let terms = running.unwrap_or_else(|| dice.pick(&self.terms).clone());
        Command::BeginCharge(BeginCharge {
            invoice,
            token,
            terms,
        })
    }

    fn attach(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> Command {
        if self.honest {
            return Command::Tick; // Only who created an object may name it.
        }
        let token = self.token(dice, model, &invoice);
        let object = self.object(dice);
        Command::AttachProviderObject(AttachProviderObject {
            invoice,
            token,
            object,
        })
    }

    fn object(&self, dice: &mut Dice) -> ObjectId {
        ObjectId::new(&format!("pi-{}", dice.below(self.objects))).expect("short")
    }

    fn key(&self, dice: &mut Dice, model: &Model, invoice: &InvoiceId) -> IdempotencyKey {
        let known = model.invoices.get(invoice);
        let live = known
            .and_then(|invoice| invoice.live())
            .map(|attempt| u64::from(attempt.number));
        let highest = known.map_or(0, |invoice| u64::from(invoice.highest));
        let number = match dice.below(100) {
            0..=79 => live.unwrap_or(highest).max(1),
            80..=97 => dice.between(1, highest.max(1)),
            98 => highest + dice.between(1, 3),
            _ if dice.below(50) == 0 => u64::from(limits::ATTEMPT_NUMBER_MAX),
            _ => highest.max(1),
        };
        let ledger = if dice.below(100) == 0 {
            "other"
        } else {
            LEDGER
        };
        let named = if dice.below(100) == 0 {
            dice.pick(&self.invoices)
        } else {
            invoice
        };
        IdempotencyKey {
            ledger: LedgerId::new(ledger).expect("short"),
            number: AttemptNumber::new(number.min(u64::from(limits::ATTEMPT_NUMBER_MAX)))
                .expect("in bounds"),
            invoice: named.clone(),
        }
    }

    fn charged(&self, dice: &mut Dice) -> Charged {
        Charged {
            reference: match dice.below(4) {
                0 => Reference::new(self.object(dice).as_str()).expect("short"),
                _ => Reference::new(&format!("ch-{}", dice.below(self.references))).expect("short"),
            },
            amount: match dice.below(10) {
                0..=6 => None,
                _ => AmountMinor::new(1_000 + dice.below(3)).ok(),
            },
            currency: match dice.below(20) {
                0..=14 => None,
                15 => Currency::new("USD").ok(),
                _ => Currency::new("EUR").ok(),
            },
        }
    }

    fn settle(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> Command {
        let mut token = self.token(dice, model, &invoice);
        let key = self.key(dice, model, &invoice);
        let code = DeclineCode::new("card_declined").expect("short");
        let finality = *dice.pick(&[
            Finality::None,
            Finality::Sticky,
            Finality::SoleSend,
            Finality::Object,
        ]);
        let outcome = if self.honest {
            match dice.below(3) {
                0 => Outcome::Unknown { detail: None },
                1 => Outcome::Declined {
                    code,
                    retryable: true,
                    finality: Finality::None,
                },
                _ => {
                    // A lie, but from a token that was granted to nobody.
                    token = FencingToken::NONE;
                    Outcome::Declined {
                        code,
                        retryable: true,
                        finality,
                    }
                }
            }
        } else {
            match dice.below(20) {
                0 => Outcome::Charged(self.charged(dice)),
                1 => Outcome::Declined {
                    code,
                    retryable: false,
                    finality: Finality::None,
                },
                2..=9 => Outcome::Declined {
                    code,
                    retryable: dice.percent(85),
                    finality,
                },
                10 if dice.percent(30) => Outcome::LookedUp(Some(self.charged(dice))),
                10..=13 => Outcome::LookedUp(None),
                14..=15 => Outcome::Cancelled {
                    object: self.object(dice),
                },
                16..=17 => Outcome::Pending {
                    expected_by: WallTime(model.wall + self.wait_for_provider(dice)),
                },
                _ => Outcome::Unknown { detail: None },
            }
        };
        Command::SettleCharge(Box::new(SettleCharge {
            invoice,
            token,
            key,
            outcome,
        }))
    }

    fn wait_for_provider(&self, dice: &mut Dice) -> u64 {
        match dice.below(20) {
            0 => limits::PENDING_MS_MAX + dice.below(2),
            1 => 0,
            _ => dice.below(30_000),
        }
    }

    fn resolve(&mut self, dice: &mut Dice, model: &Model, invoice: InvoiceId) -> Command {
        if self.honest {
            return Command::Tick; // Only who read the provider's books may speak.
        }
        let key = self.key(dice, model, &invoice);
        let verdict = if dice.percent(30) {
            Verdict::Charged(self.charged(dice))
        } else {
            Verdict::NotCharged
        };
        Command::ResolveCharge(Box::new(ResolveCharge {
            invoice,
            key,
            verdict,
            evidence: evidence("read the books"),
        }))
    }
}

fn holder(dice: &mut Dice) -> HolderId {
    HolderId::new(["ana", "ben", "cleo"][dice.index(3)]).expect("short")
}
