//! Decides what a client of the lock does: it acquires, acts, renews, charges by hand, releases or falls silent, as chance has
//! it, through the real client; and writes down what it asked, what it heard and when it acted. Knows no provider.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use billing_client::{
    AcquireOptions, Client, Failure, LeaseGuard, Outcome, Rejection, Session, SessionOptions, v1,
};
use billing_core::{Charged, DeclineCode, Finality, IdempotencyKey, InvoiceId, Reference};
use billing_env::Clock;

use super::{Machine, endpoints};
use crate::profile;
use crate::record::{Asked, Call, Heard, Promise};

const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(300);
const ACT_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct CallerSettings {
    pub nodes: u64,
    /// Plain locks, and invoices that are charged by hand: all callers want the same ones.
    pub locks: Vec<String>,
    pub by_hand: Vec<String>,
    pub drift: f64,
}

/// One caller's machine.
pub struct Caller {
    pub machine: Machine,
    number: u64,
    settings: CallerSettings,
    resting: Arc<AtomicBool>,
    /// Calls to `run` so far: each process is a client of its own in the history.
    processes: AtomicU64,
}

impl Caller {
    pub fn new(machine: Machine, number: u64, settings: CallerSettings) -> Caller {
        Caller {
            machine,
            number,
            settings,
            resting: Arc::default(),
            processes: AtomicU64::new(0),
        }
    }

    /// Begins nothing new any more.
    pub fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
    }

    pub async fn run(self: Arc<Caller>) -> turmoil::Result {
        let process = self.processes.fetch_add(1, Ordering::Relaxed);
        let client = Client::builder()
            .endpoints(endpoints(self.settings.nodes))
            .env(self.machine.env())
            .drift(self.settings.drift)
            .build()?;
        let life = Life {
            caller: &self,
            who: self.number * 1_000 + process,
            client,
        };
        while !self.resting.load(Ordering::Relaxed) {
            life.one_session().await;
        }
        Ok(())
    }
}

/// One process of a caller.
struct Life<'a> {
    caller: &'a Caller,
    who: u64,
    client: Client,
}

impl Life<'_> {
    fn below(&self, bound: u64) -> u64 {
        self.caller.machine.chance.below(bound)
    }

    async fn sleep(&self, duration: Duration) {
        self.caller.machine.clock.sleep(duration).await;
    }

    async fn one_session(&self) {
        let ttl = Duration::from_millis(1_500 + self.below(4_000));
        let options = SessionOptions::new(self.caller.machine.name.clone(), ttl);
        let session = match self.client.open_session(options).await {
            Ok(session) => session,
            Err(_) => return self.sleep(PAUSE_AFTER_FAILURE).await,
        };
        for _ in 0..3 + self.below(10) {
            if !session.is_valid() || self.caller.resting.load(Ordering::Relaxed) {
                break;
            }
            self.one_turn(&session).await;
            self.sleep(Duration::from_millis(20 + self.below(400)))
                .await;
        }
        if self.below(4) > 0 {
            // Whatever comes of it: a session that is not closed ends by itself.
            let _ = session.close().await;
        }
    }

    async fn one_turn(&self, session: &Session) {
        let by_hand = !self.settings().by_hand.is_empty() && self.below(3) == 0;
        let among = if by_hand {
            &self.settings().by_hand
        } else {
            &self.settings().locks
        };
        let Some(invoice) = self.caller.machine.chance.pick(among) else {
            return;
        };
        if self.below(4) == 0 {
            self.get(&invoice).await;
        }
        let Some(guard) = self.acquire(session, &invoice).await else {
            return;
        };
        let token = guard.token().0;
        self.act_for(&guard, Duration::from_millis(self.below(1_500)))
            .await;
        if self.below(4) == 0 {
            self.renew(&guard).await;
            self.act_for(&guard, Duration::from_millis(self.below(2_000)))
                .await;
        }
        if by_hand && self.charge_by_hand(&guard).await {
            guard.settled();
            return;
        }
        match self.below(6) {
            // Falls silent: the lease ends with its session, or is given back in the background.
            0 => drop(guard),
            1 => {
                self.act_for(&guard, Duration::from_secs(8)).await;
                self.release(guard, &invoice, token).await;
            }
            _ => self.release(guard, &invoice, token).await,
        }
    }

    fn settings(&self) -> &CallerSettings {
        &self.caller.settings
    }

    /// Acts again and again while the lease is ours, for so long at most.
    async fn act_for(&self, guard: &LeaseGuard, lasts: Duration) {
        let clock = &self.caller.machine.clock;
        let since = clock.monotonic();
        loop {
            if !guard.is_valid() {
                return;
            }
            // No await between the look and the act: a process that stalls there is what tokens are for, and a lease is not.
            self.caller.machine.record.act(
                guard.invoice_id(),
                guard.token().0,
                &self.caller.machine.name,
            );
            if clock.monotonic().since(since) >= lasts {
                return;
            }
            tokio::select! {
                biased;
                _ = guard.lost() => return,
                () = self.sleep(ACT_EVERY) => {}
            }
        }
    }

    fn begin_call(&self, invoice: &str, asked: Asked) -> Call {
        Call {
            who: self.who,
            invoice: invoice.to_owned(),
            asked,
            heard: Heard::Unknown,
            called: self.caller.machine.record.now(),
            returned: None,
        }
    }

    /// `None`: it certainly did not happen, so it is in no history.
    fn end_call(&self, mut call: Call, heard: Option<Heard>) {
        let Some(heard) = heard else { return };
        if heard != Heard::Unknown {
            call.returned = Some(self.caller.machine.record.now());
        }
        self.caller.machine.record.note(format_args!(
            "{} {} {:?}: {heard:?}",
            self.caller.machine.name, call.invoice, call.asked
        ));
        call.heard = heard;
        self.caller.machine.record.call(call);
    }

    fn promise(&self, invoice: &str, promise: Promise) {
        if let Ok(invoice) = InvoiceId::new(invoice) {
            self.caller.machine.record.promise(&invoice, promise);
        }
    }

    async fn acquire(&self, session: &Session, invoice: &str) -> Option<LeaseGuard> {
        let wait = Duration::from_millis(match self.below(3) {
            0 => 0,
            _ => self.below(6_000),
        });
        let mut options = AcquireOptions::wait(wait);
        if self.below(3) == 0 {
            options = options.ttl(Duration::from_millis(1_000 + self.below(4_000)));
        }
        let call = self.begin_call(invoice, Asked::Acquire);
        let (heard, guard) = match session.acquire(invoice, options).await {
            Ok(guard) => {
                let token = guard.token().0;
                self.promise(invoice, Promise::Granted { token });
                (Some(Heard::Granted { token }), Some(guard))
            }
            Err(Failure::Rejected(Rejection::HeldByOther { .. })) => (Some(Heard::Refused), None),
            Err(Failure::NotApplied(_)) => (None, None),
            // What became of it is in the audit log, under this session.
            Err(Failure::Rejected(_) | Failure::Unknown(_)) => (None, None),
        };
        self.end_call(call, heard);
        guard
    }

    async fn renew(&self, guard: &LeaseGuard) {
        let token = guard.token().0;
        let call = self.begin_call(guard.invoice_id(), Asked::Renew { token });
        let ttl = Duration::from_millis(1_000 + self.below(4_000));
        let heard = match guard.renew(ttl).await {
            Ok(_) => Some(Heard::Renewed),
            Err(Failure::Rejected(
                Rejection::StaleToken { .. } | Rejection::LeaseExpired { .. },
            )) => Some(Heard::Stale),
            // It changes no holder: a renewal whose answer is lost tells nothing.
            Err(_) => None,
        };
        self.end_call(call, heard);
    }

    async fn release(&self, guard: LeaseGuard, invoice: &str, token: u64) {
        let call = self.begin_call(invoice, Asked::Release { token });
        let heard = match guard.release().await {
            Ok(was_current) => {
                self.promise(invoice, Promise::Released { token, was_current });
                Some(Heard::Released { was_current })
            }
            // The background goes on with it.
            Err(_) => Some(Heard::Unknown),
        };
        self.end_call(call, heard);
    }

    async fn get(&self, invoice: &str) {
        let call = self.begin_call(invoice, Asked::Get);
        let heard = match self.client.get_lease(invoice, false).await {
            Ok(lease) => Some(Heard::Holds {
                token: lease.map(|lease| lease.token),
            }),
            Err(_) => None,
        };
        self.end_call(call, heard);
    }

    /// Begins a charge and settles it, as somebody would who charges by other means. True: the lease ended with it.
    async fn charge_by_hand(&self, guard: &LeaseGuard) -> bool {
        let (invoice, token) = (guard.invoice_id(), guard.token());
        let call = self.begin_call(invoice, Asked::Begin { token: token.0 });
        let begun = match self
            .client
            .begin_charge(invoice, token, Some(terms()))
            .await
        {
            Ok(begun) => begun,
            Err(Failure::Rejected(
                Rejection::StaleToken { .. } | Rejection::LeaseExpired { .. },
            )) => {
                self.end_call(call, Some(Heard::Stale));
                return false;
            }
            Err(Failure::Unknown(_)) => {
                self.end_call(call, Some(Heard::Unknown));
                return false;
            }
            Err(Failure::Rejected(_) | Failure::NotApplied(_)) => return false,
        };
        let attempt = begun.attempt;
        let number = attempt.number;
        self.end_call(call, Some(Heard::Begun { attempt: number }));
        let Ok(key) = IdempotencyKey::parse(&attempt.idempotency_key) else {
            return false;
        };
        self.promise(
            invoice,
            Promise::Begun {
                token: token.0,
                key,
            },
        );
        self.act_for(guard, Duration::from_millis(self.below(800)))
            .await;
        let charged = match self.below(4) {
            // Nobody knows what came of it: in doubt.
            0 => return false,
            1 => false,
            _ => true,
        };
        let (Ok(reference), Ok(code)) = (
            // One charge an attempt, whoever settles it: what a provider that honours the key would show.
            Reference::new(&format!("hand-{}", attempt.idempotency_key)),
            DeclineCode::new("card_declined"),
        ) else {
            return false;
        };
        let outcome = if charged {
            Outcome::Charged(Charged {
                reference: reference.clone(),
                amount: None,
                currency: None,
            })
        } else {
            Outcome::Declined {
                code,
                retryable: false,
                finality: Finality::SoleSend,
            }
        };
        let asked = Asked::Settle {
            token: token.0,
            charged,
        };
        let call = self.begin_call(invoice, asked);
        let settled = self
            .client
            .settle_charge(invoice, token, &attempt.idempotency_key, &outcome)
            .await;
        match settled {
            Ok(_) => {
                self.end_call(call, Some(Heard::Settled));
                let promise = if charged {
                    Promise::Charged {
                        reference: reference.as_str().to_owned(),
                    }
                } else {
                    Promise::Declined { token: token.0 }
                };
                self.promise(invoice, promise);
                true
            }
            Err(Failure::Rejected(
                Rejection::StaleToken { .. } | Rejection::LeaseExpired { .. },
            )) => {
                self.end_call(call, Some(Heard::Stale));
                false
            }
            Err(Failure::Unknown(_)) => {
                self.end_call(call, Some(Heard::Unknown));
                false
            }
            Err(Failure::Rejected(_) | Failure::NotApplied(_)) => false,
        }
    }
}

/// What whoever charges by hand promises: nothing that could be looked up, so that a doubt goes to a person soon.
pub fn terms() -> v1::ChargeTerms {
    v1::ChargeTerms {
        provider: "hand".to_owned(),
        account: "default".to_owned(),
        live: false,
        fingerprint: b"by hand".to_vec(),
        valid_for_ms: u64::try_from(profile::VALID_FOR.as_millis()).unwrap_or(u64::MAX),
        in_flight_max_ms: u64::try_from(profile::IN_FLIGHT_MAX.as_millis()).unwrap_or(u64::MAX),
        can_look_up: false,
        sticky: false,
    }
}
