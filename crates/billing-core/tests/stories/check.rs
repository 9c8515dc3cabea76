//! The one `check` through which every story goes: a text table of "time  who does what  => what they are told". Reads lines,
//! applies them to a ledger with every invariant on, compares. Knows no rule: what is expected stands in the story.
//!
//! A line without a time goes on with the line before: `& ...` is one more command in the same batch, `X is told ...` and
//! `alarm: ...` are what else that batch must bring, exactly. Tokens are counted from the bootstrap, so the first one is 1.

use billing_core::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const WALL_START_MS: u64 = 1_790_000_000_000;

/// Plays a story that begins on a new ledger `L` without prior charges.
pub fn check(story: &str) {
    check_with(Config::default(), story);
}

/// The same with other bounds.
pub fn check_with(config: Config, story: &str) {
    let mut play = Play::new(config);
    if !story.contains("bootstraps") {
        play.batch = vec![play.command("op bootstraps L, no prior charges")];
        play.apply(0);
        play.base_token = play.ledger.token_last().0;
    }
    play.tell(story);
}

struct Play {
    ledger: Ledger,
    base_token: u64,
    /// The leader: it counts from `base` since `since`.
    base: ClusterTime,
    since_ms: u64,
    wall_ahead_ms: i64,
    /// How much of that no majority has confirmed.
    wall_jumped_ms: i64,
    now_ms: u64,
    requests: BTreeMap<String, u8>,
    batch: Vec<(Actor, Command)>,
    expected: Vec<String>,
    others: Vec<String>,
}

impl Play {
    fn new(config: Config) -> Self {
        Self {
            ledger: Ledger::new(config),
            base_token: 0,
            base: ClusterTime(0),
            since_ms: 0,
            wall_ahead_ms: 0,
            wall_jumped_ms: 0,
            now_ms: 0,
            requests: BTreeMap::new(),
            batch: Vec::new(),
            expected: Vec::new(),
            others: Vec::new(),
        }
    }

    fn tell(&mut self, story: &str) {
        for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let line = line.split("  #").next().unwrap_or(line).trim();
            if let Some(command) = line.strip_prefix("& ") {
                self.add(command);
            } else if line.contains(" is told ") || line.starts_with("alarm: ") {
                self.others.push(line.to_owned());
            } else {
                self.flush();
                let (time, command) = line.split_once(' ').expect("a line is: time, who, what");
                self.now_ms = ms(time);
                self.begin(command.trim());
            }
        }
        self.flush();
        if let Err(broken) = self.ledger.check_invariants() {
            panic!("{broken}");
        }
    }

    fn begin(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["wall", "is", far, "ahead"] => self.wall_ahead_ms = i64::try_from(ms(far)).unwrap(),
            ["wall", "jumps", far, "ahead"] => self.wall_jumps(i64::try_from(ms(far)).unwrap()),
            ["wall", "jumps", far, "back"] => self.wall_jumps(-i64::try_from(ms(far)).unwrap()),
            ["wall", "is", "compared"] => self.wall_jumped_ms = 0,
            ["wall", "is", far, "behind"] => self.wall_ahead_ms = -i64::try_from(ms(far)).unwrap(),
            ["a", "new", "leader", "counts", "from", base] => {
                self.base = ClusterTime(ms(base));
                self.since_ms = self.now_ms;
            }
            ["look", "at", ..] | ["time", "is", ..] | ["ticks", ..] | ["events", "from", ..] => {
                let (_, expected) = split(command);
                let seen = match words[1] {
                    "from" => self.events(words[2]),
                    "at" => self.look(words[2]),
                    "is" => format!("{} ms", self.ledger.now().0),
                    _ => self
                        .ledger
                        .tick_needed()
                        .map_or("none".into(), |every| format!("every {every} ms")),
                };
                assert_eq!(seen, expected, "at {} ms: {command}", self.now_ms);
            }
            _ => self.add(command),
        }
    }

    fn add(&mut self, line: &str) {
        let (command, expected) = split(line);
        let command = self.command(command);
        self.batch.push(command);
        self.expected.push(expected.to_owned());
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let commands = self.batch.clone();
        let applied = self.apply(self.now_ms);
        let told: Vec<String> = applied
            .results
            .iter()
            .map(|result| self.words(result))
            .collect();
        let expected = std::mem::take(&mut self.expected);
        assert_eq!(told, expected, "at {} ms: {commands:?}", self.now_ms);
        let answers = applied.answers.iter().map(|answer| {
            let who = self
                .requests
                .iter()
                .find(|(_, id)| session(**id) == answer.session);
            let who = who.map_or("?", |(name, _)| name.split('/').next().unwrap_or(name));
            format!("{who} is told {}", self.words(&answer.result))
        });
        let alarms = applied.alarms.iter().map(|alarm| {
            format!(
                "alarm: {} {}: {}",
                alarm.invoice, alarm.reference, alarm.reason
            )
        });
        let others: Vec<String> = answers.chain(alarms).collect();
        assert_eq!(
            others,
            std::mem::take(&mut self.others),
            "at {} ms, besides: {commands:?}",
            self.now_ms
        );
    }

    fn wall_jumps(&mut self, by_ms: i64) {
        self.wall_ahead_ms += by_ms;
        self.wall_jumped_ms += by_ms;
    }

    fn apply(&mut self, at_ms: u64) -> Applied {
        let wall = (WALL_START_MS + at_ms)
            .checked_add_signed(self.wall_ahead_ms)
            .unwrap();
        let stamp = Stamp {
            base: self.base,
            elapsed_ms: at_ms - self.since_ms,
            wall: WallTime(wall),
            wall_jumped_ms: self.wall_jumped_ms,
        };
        let batch = std::mem::take(&mut self.batch);
        self.ledger.apply(stamp, &batch)
    }

    fn look(&self, id: &str) -> String {
        let Some(view) = self.ledger.invoice_view(&invoice(id)) else {
            return "nothing".into();
        };
        let mut seen = view.status.to_string();
        if let Some(lease) = &view.lease {
            seen += &format!(
                ", {} holds token {}",
                lease.holder,
                lease.token.0 - self.base_token
            );
        }
        if let Some(attempt) = &view.open_attempt {
            seen += &format!(", attempt {} {:?}", attempt.number, attempt.state);
        }
        if let Some(review) = view.review {
            seen += &format!(", {review}");
        }
        if view.next_try_in_ms > 0 {
            seen += &format!(", next try in {} ms", view.next_try_in_ms);
        }
        seen
    }

    /// What a watcher hears from the nth record after the bootstrap's on.
    fn events(&self, from: &str) -> String {
        let from: u64 = from.parse().expect("an index");
        match self.ledger.lease_events(from + 1, 100) {
            Ok(heard) => {
                let each: Vec<String> = heard
                    .events
                    .iter()
                    .map(|event| {
                        let token = event.token.0 - self.base_token;
                        format!("{} {} {token} {}", event.what, event.invoice, event.holder)
                    })
                    .collect();
                format!("[{}], next {}", each.join("; "), heard.next_index - 1)
            }
            Err(refused) => format!("refused: {refused}"),
        }
    }

    /// A result as the story writes it.
    fn words(&self, result: &Result<Reply, Rejection>) -> String {
        let token = |token: FencingToken| token.0.saturating_sub(self.base_token);
        let attempt = |attempt: &ChargeAttempt| {
            let over = if attempt.taken_over {
                ", taken over"
            } else {
                ""
            };
            let object = attempt
                .provider_object
                .as_ref()
                .map_or(String::new(), |object| format!(", {object}"));
            format!(
                "{} within {} ms{over}{object}",
                attempt.idempotency_key, attempt.send_within_ms
            )
        };
        match result {
            Err(refused) => format!("refused: {}", self.small(&refused.to_string())),
            Ok(reply) => match reply {
                Reply::Bootstrapped { ledger_id } => format!("bootstrapped {ledger_id}"),
                Reply::Restored { ledger_id } => format!("restored {ledger_id}"),
                Reply::Session(view) => match view.expires_in_ms {
                    Some(expires) => format!("session for {expires} ms"),
                    None => "session without a deadline".into(),
                },
                Reply::SessionClosed { was_open } => {
                    if *was_open { "closed" } else { "was not open" }.into()
                }
                Reply::Leased(leased) => match &leased.open_attempt {
                    Some(open) => format!(
                        "token {}, attempt {} {:?}",
                        token(leased.lease.token),
                        open.number,
                        open.state
                    ),
                    None => format!("token {}", token(leased.lease.token)),
                },
                Reply::Queued => "queued".into(),
                Reply::WaiterWithdrawn { was_waiting } => if *was_waiting {
                    "withdrawn"
                } else {
                    "was not waiting"
                }
                .into(),
                Reply::Renewed(lease) => format!("renewed for {} ms", lease.expires_in_ms),
                Reply::Released { was_current } => if *was_current {
                    "released"
                } else {
                    "was not current"
                }
                .into(),
                Reply::Claimed(claimed) => {
                    let each: Vec<String> = claimed
                        .leased
                        .iter()
                        .map(|one| format!("{}:{}", one.lease.invoice, token(one.lease.token)))
                        .collect();
                    let next = claimed
                        .next_due_in_ms
                        .map_or(String::new(), |next| format!(", next in {next} ms"));
                    format!("claimed [{}]{next}", each.join(" "))
                }
                Reply::Submitted { unchanged } => {
                    if *unchanged { "unchanged" } else { "submitted" }.into()
                }
                Reply::Status { status } => status.to_string(),
                Reply::Begun(begun) => attempt(begun),
                Reply::Attached { object } => format!("attached {object}"),
                Reply::ForceReleased { was_leased, status } => {
                    format!(
                        "{}, {status}",
                        if *was_leased {
                            "forced"
                        } else {
                            "was not leased"
                        }
                    )
                }
                Reply::Done => "done".into(),
                Reply::Each(results) => {
                    let each: Vec<String> =
                        results.iter().map(|result| self.words(result)).collect();
                    format!("[{}]", each.join("; "))
                }
            },
        }
    }

    /// The text with its tokens counted from the bootstrap.
    fn small(&self, text: &str) -> String {
        let words = text.split(' ').map(|word| {
            let digits = word.trim_end_matches(',');
            match digits.parse::<u64>() {
                Ok(number) if self.base_token > 0 && number > self.base_token => {
                    word.replace(digits, &(number - self.base_token).to_string())
                }
                Ok(_) | Err(_) => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn command(&mut self, line: &str) -> (Actor, Command) {
        if let Some((start, items)) = line.split_once(" each:") {
            return self.each(start, items);
        }
        let line = line.replace(',', " ");
        let words: Vec<&str> = line.split_whitespace().collect();
        let (who, rest) = words.split_first().expect("who does it");
        let has = |word: &str| rest.contains(&word);
        let after = |word: &str| {
            rest.iter()
                .position(|w| *w == word)
                .and_then(|at| rest.get(at + 1))
                .copied()
        };
        let number = |word: &str| {
            after(word).map(|n| {
                n.parse::<u64>()
                    .unwrap_or_else(|_| panic!("{word} in {line}"))
            })
        };
        let token = FencingToken(number("token").map_or(0, |token| token + self.base_token));
        let ttl = after("for").map(|time| TtlMs::new(ms(time)).unwrap());
        let wait = WaitMs::new(after("waiting").map_or(0, ms)).unwrap();
        let evidence = || Evidence::new("seen in the books").unwrap();
        let second = rest.get(1).copied().unwrap_or("");
        let command = match rest.first().copied().unwrap_or(who) {
            "tick" => Command::Tick,
            "bootstraps" => {
                let bootstrap = Bootstrap {
                    ledger_id: LedgerId::new(second).unwrap(),
                    no_prior_charges: has("prior"),
                };
                match ttl {
                    Some(ttl_max) => {
                        Command::BootstrapWithin(BootstrapWithin { bootstrap, ttl_max })
                    }
                    None => Command::Bootstrap(bootstrap),
                }
            }
            "restores" => Command::Restore(Restore { reason: evidence() }),
            "allows" => Command::AllowCharges(AllowCharges {
                evidence: evidence(),
            }),
            "pauses" | "resumes" => Command::PauseProvider(PauseProvider {
                provider: ProviderId::new(second).unwrap(),
                paused: rest[0] == "pauses",
                reason: Evidence::new("an outage").unwrap(),
            }),
            "forces" => Command::ForceRelease(ForceRelease {
                invoice: invoice(second),
                reason: evidence(),
            }),
            "opens" => Command::OpenSession(OpenSession {
                session: self.session_of(who),
                holder: HolderId::new(after("as").unwrap_or(who)).unwrap(),
                ttl: ttl.unwrap(),
            }),
            "keeps" => Command::KeepAlive(KeepAlive {
                session: self.session_of(who),
            }),
            "closes" => Command::CloseSession(CloseSession {
                session: self.session_of(who),
            }),
            "acquires" => {
                let requester = match number("as") {
                    Some(seq) => Requester::Session {
                        session: self.session_of(who),
                        seq: Seq::new(seq).unwrap(),
                        done_below: number("below").unwrap_or(0),
                        ttl,
                    },
                    None => Requester::Implicit {
                        request: RequestId::new(*self.request_of(who, !has("again")).as_bytes()),
                        holder: HolderId::new(who).unwrap(),
                        ttl: ttl.unwrap(),
                    },
                };
                Command::AcquireLease(AcquireLease {
                    invoice: invoice(second),
                    requester,
                    wait,
                })
            }
            "withdraws" => {
                let (session, seq) = self.slot(who, number("request"));
                Command::WithdrawWaiter(WithdrawWaiter { session, seq })
            }
            "renews" => Command::RenewLease(RenewLease {
                invoice: invoice(second),
                token,
                ttl,
            }),
            "releases" if second == "request" => {
                let (session, seq) = self.slot(who, number("request"));
                Command::ReleaseLease(ReleaseLease::BySeq { session, seq })
            }
            "releases" => Command::ReleaseLease(ReleaseLease::ByToken {
                invoice: invoice(second),
                token,
            }),
            "claims" => Command::ClaimInvoices(ClaimInvoices {
                session: self.session_of(who),
                seq: Seq::new(number("as").unwrap()).unwrap(),
                done_below: number("below").unwrap_or(0),
                max: ClaimMax::new(second.parse().unwrap()).unwrap(),
            }),
            "submits" => Command::SubmitInvoice(SubmitInvoice {
                invoice: invoice(second),
                customer: CustomerId::new(after("to").unwrap_or("cus-1")).unwrap(),
                amount: AmountMinor::new(number("of").unwrap_or(500)).unwrap(),
                currency: Currency::new(after("in").unwrap_or("EUR")).unwrap(),
                due_at: after("due").map(|time| WallTime(WALL_START_MS + ms(time))),
                priority: Priority::new(after("priority").map_or(0, |p| p.parse().unwrap()))
                    .unwrap(),
            }),
            "cancels" => Command::CancelInvoice(CancelInvoice {
                invoice: invoice(second),
                reason: None,
            }),
            "requeues" => Command::RequeueInvoice(RequeueInvoice {
                invoice: invoice(second),
                reason: None,
            }),
            "begins" => Command::BeginCharge(BeginCharge {
                invoice: invoice(second),
                token,
                terms: Arc::new(Terms {
                    provider: ProviderId::new(after("at").unwrap_or("psp")).unwrap(),
                    account: AccountId::new(after("account").unwrap_or("main")).unwrap(),
                    live: !has("test"),
                    fingerprint: Fingerprint::new(after("print").unwrap_or("fp").as_bytes())
                        .unwrap(),
                    valid_for: ValidForMs::new(after("valid").map_or(3_600_000, ms)).unwrap(),
                    in_flight_max: InFlightMs::new(after("flight").map_or(60_000, ms)).unwrap(),
                    can_look_up: has("lookup"),
                    sticky: has("sticky"),
                }),
            }),
            "attaches" => Command::AttachProviderObject(AttachProviderObject {
                invoice: invoice(after("to").unwrap()),
                token,
                object: ObjectId::new(second).unwrap(),
            }),
            "settles" => {
                let key = key(second, after("ledger").unwrap_or("L"));
                let outcome = outcome(rest, WallTime(WALL_START_MS + self.now_ms));
                Command::SettleCharge(Box::new(SettleCharge {
                    invoice: key.invoice.clone(),
                    token,
                    key,
                    outcome,
                }))
            }
            "resolves" => {
                let key = key(second, after("ledger").unwrap_or("L"));
                let verdict = if has("not") {
                    Verdict::NotCharged
                } else {
                    Verdict::Charged(charged(after("charged").unwrap(), rest))
                };
                Command::ResolveCharge(Box::new(ResolveCharge {
                    invoice: key.invoice.clone(),
                    key,
                    verdict,
                    evidence: evidence(),
                }))
            }
            _ => panic!("no such command: {line}"),
        };
        (Actor::new(who).unwrap(), command)
    }

    /// `ana acquires each: inv-7 as 1; inv-8 as 2`: one command with many items, all of the first one's kind.
    fn each(&mut self, start: &str, items: &str) -> (Actor, Command) {
        let (mut acquires, mut renews, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        let mut actor = None;
        for item in items.split(';') {
            let (who, command) = self.command(&format!("{start} {item}"));
            actor = Some(who);
            match command {
                Command::AcquireLease(acquire) => acquires.push(acquire),
                Command::RenewLease(renew) => renews.push(renew),
                Command::ReleaseLease(release) => releases.push(release),
                other => panic!("there is no command of many such: {other:?}"),
            }
        }
        let command = match (acquires.is_empty(), renews.is_empty()) {
            (false, _) => Command::AcquireLeases(acquires),
            (true, false) => Command::RenewLeases(renews),
            (true, true) => Command::ReleaseLeases(releases),
        };
        (actor.expect("at least one item"), command)
    }

    fn session_of(&mut self, who: &str) -> SessionId {
        let next = u8::try_from(self.requests.len() + 1).unwrap();
        session(*self.requests.entry(who.to_owned()).or_insert(next))
    }

    /// An id for each request of a client without a session.
    fn request_of(&mut self, who: &str, fresh: bool) -> SessionId {
        let mine = self
            .requests
            .keys()
            .filter(|name| name.starts_with(&format!("{who}/")))
            .count();
        let nth = if fresh { mine + 1 } else { mine.max(1) };
        self.session_of(&format!("{who}/{nth}"))
    }

    fn slot(&mut self, who: &str, seq: Option<u64>) -> (SessionId, Seq) {
        match seq {
            Some(seq) => (self.session_of(who), Seq::new(seq).unwrap()),
            None => (self.request_of(who, false), Seq::FIRST),
        }
    }
}

fn outcome(words: &[&str], wall: WallTime) -> Outcome {
    let has = |word: &str| words.contains(&word);
    let after = |word: &str| {
        words
            .iter()
            .position(|w| *w == word)
            .map(|at| words[at + 1])
    };
    if let Some(code) = after("declined") {
        let finality = if has("sticky") {
            Finality::Sticky
        } else if has("sole") {
            Finality::SoleSend
        } else if has("object") {
            Finality::Object
        } else {
            Finality::None
        };
        return Outcome::Declined {
            code: DeclineCode::new(code).unwrap(),
            retryable: has("retryable"),
            finality,
        };
    }
    match (
        after("charged"),
        after("found"),
        after("cancelled"),
        after("pending"),
    ) {
        (Some(reference), _, _, _) => Outcome::Charged(charged(reference, words)),
        (_, Some("none"), _, _) => Outcome::LookedUp(None),
        (_, Some(reference), _, _) => Outcome::LookedUp(Some(charged(reference, words))),
        (_, _, Some(object), _) => Outcome::Cancelled {
            object: ObjectId::new(object).unwrap(),
        },
        (_, _, _, Some(until)) => Outcome::Pending {
            expected_by: wall.plus(ms(until)),
        },
        _ if has("unknown") => Outcome::Unknown { detail: None },
        _ => panic!("no such outcome: {words:?}"),
    }
}

fn charged(reference: &str, words: &[&str]) -> Charged {
    let after = |word: &str| {
        words
            .iter()
            .position(|w| *w == word)
            .map(|at| words[at + 1])
    };
    Charged {
        reference: Reference::new(reference).unwrap(),
        amount: after("of").map(|amount| AmountMinor::new(amount.parse().unwrap()).unwrap()),
        currency: after("in").map(|code| Currency::new(code).unwrap()),
    }
}

/// `inv-7/2` in a ledger.
fn key(text: &str, ledger: &str) -> IdempotencyKey {
    let (id, number) = text.rsplit_once('/').expect("invoice/attempt");
    IdempotencyKey::parse(&format!("{ledger}.{number}.{id}")).unwrap()
}

fn session(id: u8) -> SessionId {
    SessionId::new([id; 16])
}

fn invoice(id: &str) -> InvoiceId {
    InvoiceId::new(id).unwrap()
}

fn split(line: &str) -> (&str, &str) {
    let (command, expected) = line
        .split_once("=>")
        .unwrap_or_else(|| panic!("nothing is expected in: {line}"));
    (command.trim(), expected.trim())
}

fn ms(time: &str) -> u64 {
    let digits = time.trim_end_matches(char::is_alphabetic);
    let number: u64 = digits
        .parse()
        .unwrap_or_else(|_| panic!("not a time: {time}"));
    match &time[digits.len()..] {
        "ms" => number,
        "s" => number * 1_000,
        "min" => number * 60_000,
        "h" => number * 3_600_000,
        "d" => number * 86_400_000,
        unit => panic!("no such unit of time: {unit}"),
    }
}
