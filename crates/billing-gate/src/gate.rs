//! Decides when a request may leave for the provider, and what is told of it: begin, check, settle. What goes out between them
//! is decided by `objects.rs` where the provider has single-use objects, by `keys.rs` where it has none. Never sends under a
//! lease that it may have lost or after the send window; never calls anything but a parsed card decline a no.

mod keys;
mod objects;

use std::time::Duration;

use billing_core::{
    AttemptNumber, Bill, Charged, DeclineCode, Detail, Finality, IdempotencyKey, InvoiceStatus,
    ObjectId, Outcome as Said, Rejection, Terms, WallTime, sabotaged,
};
use billing_env::{BootTime, Env};
use billing_proto::Failure;

use crate::config::{GateConfig, GateError, terms};
use crate::http::Connections;
use crate::outcome::Outcome;
use crate::payers::Payer;
use crate::port::{Account, Attempt, Begun, Hold, LedgerPort};
use crate::profile::Api;
use crate::stripe::{self, ChargeParams, Stripe};

/// Sends of one key under one lease. More would rather be tried by the next holder, after the ledger's back-off.
const SENDS_MAX: u32 = 3;
/// Before the second send of a key; twice that before the third.
const SEND_BACK_OFF: Duration = Duration::from_millis(100);
/// Tries of a command whose answer was lost: the client has its own patience, these come on top.
const LEDGER_TRIES_MAX: u32 = 3;
/// A fact about money is worth more patience: a cluster without a leader comes back in seconds.
const CHARGED_TRIES_MAX: u32 = 12;
const LEDGER_BACK_OFF: Duration = Duration::from_millis(200);
const LEDGER_BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// One provider account, one credential.
pub struct Gate {
    env: Env,
    config: GateConfig,
    stripe: Stripe,
    terms: Terms,
}

/// What is known after talking to the provider.
enum Known {
    Charged(Charged),
    /// Under one key: the provider did not honour it, or forgot it in time.
    ChargedTwice {
        first: Charged,
        others: Vec<Charged>,
    },
    Declined {
        code: DeclineCode,
        retryable: bool,
        finality: Finality,
    },
    Working,
    Nothing,
    Cancelled(ObjectId),
    Unclear(String),
    LeaseLost,
}

/// The bill, its exact parameters and the attempt at work: what every step of one charge reads.
struct Job<'a, L, H> {
    ledger: &'a L,
    hold: &'a H,
    bill: &'a Bill,
    params: &'a ChargeParams,
    attempt: &'a Attempt,
    send_until: BootTime,
}

impl Gate {
    /// Connects to nothing yet.
    pub fn new(env: Env, config: GateConfig) -> Result<Gate, GateError> {
        if config.profile.api == Api::None {
            return Err(GateError::NoProvider(config.provider));
        }
        config.profile.check(&config.provider)?;
        if config.key.is_live() {
            return Err(GateError::LiveKeyInPlain(config.address));
        }
        let terms = terms(&config).map_err(|source| GateError::Terms {
            profile: config.provider.clone(),
            source,
        })?;
        let connections = Connections::to(env.clone(), config.address.clone());
        let stripe = Stripe::new(connections, &config.key, &config.profile)?;
        Ok(Gate {
            env,
            config,
            stripe,
            terms,
        })
    }

    /// Charges the bill under the lease, or continues the attempt that is open. Settling ends the lease; the other outcomes
    /// leave its release to the caller. `known`: the attempt that came with the lease, if one did.
    pub async fn charge<L: LedgerPort, H: Hold>(
        &self,
        ledger: &L,
        hold: &H,
        bill: &Bill,
        known: Option<&Attempt>,
    ) -> Outcome {
        self.env.pauses.reach("before_begin").await;
        if !hold.stands() {
            return Outcome::LeaseLost;
        }
        let params = match (self.params(bill), known) {
            (Ok(params), _) => params,
            (Err(why), None) => return self.refuse_unsent(ledger, hold, bill, &why).await,
            // Somebody could, once: their attempt is not ours to end, but its object can be looked up.
            (Err(why), Some(attempt)) => {
                return self.look_up_only(ledger, hold, bill, attempt, &why).await;
            }
        };
        if let Some(attempt) = known
            && attempt.closing
        {
            return self
                .look_up_only(
                    ledger,
                    hold,
                    bill,
                    attempt,
                    "a no was heard that proves nothing",
                )
                .await;
        }
        let terms = Terms {
            fingerprint: params.fingerprint(),
            ..self.terms.clone()
        };
        let begun = match (self.begin(ledger, hold, bill, &terms).await, known) {
            (Ok(begun), _) => begun,
            // Begun with other parameters (the customer's payment method has changed since): never sent with ours.
            (Err(Outcome::Refused(Rejection::WrongTerms { field, .. })), Some(attempt))
                if field == "fingerprint" =>
            {
                return self
                    .look_up_only(
                        ledger,
                        hold,
                        bill,
                        attempt,
                        "it was begun with other parameters",
                    )
                    .await;
            }
            (Err(outcome), _) => return outcome,
        };
        self.env.pauses.reach("after_begin").await;
        tracing::debug!(invoice = %bill.invoice, key = %begun.attempt.key, taken_over = begun.attempt.taken_over, "begun");
        let attempt = &begun.attempt;
        let job = Job {
            ledger,
            hold,
            bill,
            params: &params,
            attempt,
            send_until: begun.send_until,
        };
        let known = if self.config.profile.single_use_object {
            self.carry_out_by_object(&job).await
        } else {
            self.carry_out_by_key(&job).await
        };
        self.settle(&job, known).await
    }

    fn params(&self, bill: &Bill) -> Result<ChargeParams, String> {
        let payer = self
            .config
            .payers
            .of(&bill.customer)
            .ok_or_else(|| format!("no payer known for {}", bill.customer))?;
        stripe::params_of(bill, payer, &self.config.profile)
    }

    /// Opens the attempt. An answer that was lost is asked for again: that costs SOLE_SEND and nothing else.
    async fn begin<L: LedgerPort, H: Hold>(
        &self,
        ledger: &L,
        hold: &H,
        bill: &Bill,
        terms: &Terms,
    ) -> Result<Begun, Outcome> {
        let mut tries = 0;
        loop {
            let failure = match ledger.begin(&bill.invoice, hold.token(), terms).await {
                Ok(begun) => return Ok(begun),
                // It ended while this process was stopped, and another holder charged it meanwhile or does so now.
                Err(Failure::Rejected(
                    Rejection::StaleToken { .. }
                    | Rejection::LeaseExpired { .. }
                    | Rejection::AlreadyPaid { .. },
                )) => return Err(Outcome::LeaseLost),
                Err(Failure::Rejected(rejection)) => return Err(Outcome::Refused(rejection)),
                Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => failure,
            };
            tries += 1;
            if tries >= LEDGER_TRIES_MAX {
                return Err(Outcome::NotBegun(failure));
            }
            self.env.clock.sleep(back_off(tries)).await;
            if !hold.stands() {
                return Err(Outcome::LeaseLost);
            }
        }
    }

    /// Why a no to this key is the last word on it, strongest reason first. The ledger checks it.
    fn finality<L, H>(&self, job: &Job<'_, L, H>, sends: u32) -> Finality {
        let profile = &self.config.profile;
        match () {
            // Every confirmation goes to the recorded object, and the next attempt's will too.
            () if profile.single_use_object => Finality::Object,
            () if self.keeps_declines(job.attempt) => Finality::Sticky,
            () if sends == 1 && !job.attempt.taken_over => Finality::SoleSend,
            () if !job.attempt.taken_over && sabotaged!(SoleSendOfMany) => Finality::SoleSend,
            () => Finality::None,
        }
    }

    /// Whoever made the attempt, or the ledger, may know that declines under its key are not kept; or we may have learned it
    /// since.
    fn keeps_declines(&self, attempt: &Attempt) -> bool {
        self.config.profile.sticky_declines && attempt.keeps_declines
    }

    /// The check, made on a connection that stands already.
    fn may_send<L: LedgerPort, H: Hold>(&self, job: &Job<'_, L, H>) -> Result<(), Known> {
        if !job.hold.stands() && !sabotaged!(GateWithoutLeaseCheck) {
            return Err(Known::LeaseLost);
        }
        if self.env.clock.boottime() >= job.send_until && !sabotaged!(GateWithoutNotAfter) {
            // Too late for this key: we add nothing to what was there to be seen.
            return Err(Known::Nothing);
        }
        Ok(())
    }

    /// For an attempt under which we may send nothing: its object says what became of it.
    async fn look_up_only<L: LedgerPort, H: Hold>(
        &self,
        ledger: &L,
        hold: &H,
        bill: &Bill,
        attempt: &Attempt,
        why: &str,
    ) -> Outcome {
        if attempt.account.as_ref() != Some(&Account::from(&self.terms)) {
            // Another account's objects cannot be seen with our key: not seeing them proves nothing.
            return Outcome::InDoubt {
                why: format!("{why}, under another account"),
                told: false,
            };
        }
        match self.sums_only(bill) {
            Ok(params) => {
                let known = self.look_up_attempt(attempt, &params).await;
                let job = Job {
                    ledger,
                    hold,
                    bill,
                    params: &params,
                    attempt,
                    send_until: BootTime::default(),
                };
                self.settle(&job, known).await
            }
            Err(why) => Outcome::InDoubt { why, told: false },
        }
    }

    /// What cannot be charged at all (no payer, a sum that the provider cannot say) fails without a send.
    async fn refuse_unsent<L: LedgerPort, H: Hold>(
        &self,
        ledger: &L,
        hold: &H,
        bill: &Bill,
        why: &str,
    ) -> Outcome {
        tracing::warn!(invoice = %bill.invoice, why, "cannot be charged");
        let begun = match self.begin(ledger, hold, bill, &self.terms).await {
            Ok(begun) => begun,
            Err(outcome) => return outcome,
        };
        let attempt = &begun.attempt;
        let sums = self.sums_only(bill);
        let known = match (&attempt.object, &sums) {
            // This token opened the attempt, and nothing older can be charged either.
            (None, _) if !attempt.taken_over => Known::Nothing,
            (_, Ok(params)) => self.look_up_attempt(attempt, params).await,
            (_, Err(_)) => Known::Unclear(why.to_owned()),
        };
        let known = match (known, DeclineCode::new("not_chargeable")) {
            // This token opened the attempt and it sends nothing: no send of this key can succeed.
            (Known::Nothing, Ok(code)) if !attempt.taken_over => Known::Declined {
                code,
                retryable: false,
                finality: Finality::SoleSend,
            },
            (Known::Nothing, _) => Known::Unclear(why.to_owned()),
            (known, _) => known,
        };
        let nothing = ChargeParams {
            create: String::new(),
            confirm: String::new(),
            amount: 0,
            currency: String::new(),
        };
        let params = sums.as_ref().unwrap_or(&nothing);
        let job = Job {
            ledger,
            hold,
            bill,
            params,
            attempt,
            send_until: BootTime::default(),
        };
        self.settle(&job, known).await
    }

    /// A look-up compares sums; who pays, and how, was said when it was sent.
    fn sums_only(&self, bill: &Bill) -> Result<ChargeParams, String> {
        let nobody = Payer {
            provider_customer: None,
            payment_method: String::new(),
        };
        stripe::params_of(bill, &nobody, &self.config.profile)
    }

    async fn look_up_attempt(&self, attempt: &Attempt, params: &ChargeParams) -> Known {
        if self.config.profile.single_use_object {
            self.look_up_recorded(attempt, params).await
        } else {
            self.look_up_key(attempt).await
        }
    }

    async fn pause_between_sends(&self, sends: u32) {
        if sends > 0 {
            let pause = SEND_BACK_OFF * sends;
            self.env
                .clock
                .sleep(pause / 2 + self.env.random.jitter(pause / 2))
                .await;
        }
    }

    /// Tells the ledger, and keeps telling it that money moved.
    async fn settle<L: LedgerPort, H: Hold>(&self, job: &Job<'_, L, H>, known: Known) -> Outcome {
        self.env.pauses.reach("before_settle").await;
        let key = &job.attempt.key;
        let invoice = &job.bill.invoice;
        let known = match known {
            Known::Unclear(why) if sabotaged!(SilenceTakenForDecline) => {
                let (retryable, finality) = (true, self.finality(job, 1));
                match DeclineCode::new("no_answer") {
                    Ok(code) => Known::Declined {
                        code,
                        retryable,
                        finality,
                    },
                    Err(_) => Known::Unclear(why),
                }
            }
            known => known,
        };
        match known {
            Known::Charged(charged) => self.settle_charged(job, charged).await,
            Known::ChargedTwice { first, others } => {
                tracing::error!(%invoice, %key, first = %first.reference, more = others.len(), "charged more than once under one key");
                let mut outcome = self.settle_charged(job, first).await;
                for other in others {
                    // A fact that could not be told must not be hidden by the next one; whoever comes next finds all again.
                    if !matches!(outcome, Outcome::Charged { .. }) {
                        break;
                    }
                    outcome = self.settle_charged(job, other).await;
                }
                outcome
            }
            Known::Declined {
                code,
                retryable,
                finality,
            } => {
                let said = Said::Declined {
                    code: code.clone(),
                    retryable,
                    finality,
                };
                self.report(job, key, said, |status| Outcome::Declined { code, status })
                    .await
            }
            Known::Working => {
                let look_again = u64::try_from(self.config.profile.pending_every.as_millis())
                    .unwrap_or(u64::MAX);
                let expected_by = WallTime(self.env.clock.wall_ms()).plus(look_again);
                self.report(job, key, Said::Pending { expected_by }, |status| {
                    Outcome::Pending { status }
                })
                .await
            }
            Known::Nothing => {
                self.report(job, key, Said::LookedUp(None), |status| {
                    Outcome::NothingFound { status }
                })
                .await
            }
            Known::Cancelled(object) => {
                let said = Said::Cancelled { object };
                self.report(job, key, said, |status| Outcome::ObjectCancelled { status })
                    .await
            }
            Known::Unclear(why) => {
                let detail = Detail::new(&readable(&why)).ok();
                self.report(job, key, Said::Unknown { detail }, |_| Outcome::InDoubt {
                    why,
                    told: true,
                })
                .await
            }
            // The ledger knows it already, and hands the invoice on.
            Known::LeaseLost => Outcome::LeaseLost,
        }
    }

    async fn settle_charged<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        charged: Charged,
    ) -> Outcome {
        let key = &job.attempt.key;
        let invoice = &job.bill.invoice;
        let said = Said::Charged(charged.clone());
        match self.tell(job, key, said, CHARGED_TRIES_MAX).await {
            Ok(status) => {
                tracing::debug!(%invoice, %key, reference = %charged.reference, %status, "settled");
                Outcome::Charged { charged, status }
            }
            Err(failure) => {
                tracing::error!(%invoice, %key, reference = %charged.reference, %failure, "charged, and the ledger could not be told");
                Outcome::ChargedUnsettled { charged, failure }
            }
        }
    }

    async fn report<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        key: &IdempotencyKey,
        said: Said,
        told: impl FnOnce(InvoiceStatus) -> Outcome,
    ) -> Outcome {
        match self.tell(job, key, said, LEDGER_TRIES_MAX).await {
            Ok(status) => told(status),
            Err(Failure::Rejected(
                Rejection::StaleToken { .. } | Rejection::LeaseExpired { .. },
            )) => Outcome::LeaseLost,
            Err(failure) => Outcome::InDoubt {
                why: format!("the ledger could not be told: {failure}"),
                told: false,
            },
        }
    }

    /// Every settlement may be repeated: a fact that is known already changes nothing, and anything else needs the token and
    /// the key of the attempt that it ended.
    async fn tell<L: LedgerPort, H: Hold>(
        &self,
        job: &Job<'_, L, H>,
        key: &IdempotencyKey,
        said: Said,
        tries_max: u32,
    ) -> Result<InvoiceStatus, Failure> {
        let mut tries = 0;
        let mut other_key = None; // No gate but a broken one has it.
        loop {
            let key = other_key.as_ref().unwrap_or(key);
            let failure = match job
                .ledger
                .settle(&job.bill.invoice, job.hold.token(), key, said.clone())
                .await
            {
                Ok(status) => return Ok(status),
                Err(rejected @ Failure::Rejected(_)) => return Err(rejected),
                Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_))) => failure,
            };
            tries += 1;
            if tries >= tries_max {
                return Err(failure);
            }
            if sabotaged!(SettleRetriedUnderNewKey)
                && matches!(failure, Failure::Unknown(_))
                && let Ok(number) = AttemptNumber::new(u64::from(key.number.get()) + 1)
            {
                other_key = Some(IdempotencyKey {
                    number,
                    ..key.clone()
                });
            }
            self.env.clock.sleep(back_off(tries)).await;
        }
    }
}

fn back_off(tries: u32) -> Duration {
    LEDGER_BACK_OFF
        .saturating_mul(1 << tries.min(6))
        .min(LEDGER_BACK_OFF_MAX)
}

/// What a person reads in the ledger: no control characters, and within its bound.
pub(crate) fn readable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(200)
        .collect()
}
