//! Words of those whose time is over, or has not come: a holder overslept, another one holds the lease, and then the first one
//! begins, attaches, settles, renews and releases with its old token; a look-up is told under a lease that is too old to know;
//! a second object is attached beside the first; a person requeues or cancels what may still be charged. Each is refused, or
//! changes nothing, and afterwards the charge goes on as if nobody had said it. Nothing is sent to a provider: whatever is
//! said is made up, as a wrong gate would make it up.

use std::future::Future;
use std::mem::forget;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use billing_client::{AcquireOptions, Client, Failure, Outcome, Rejection, v1};
use billing_core::{
    Charged, DeclineCode, FencingToken, Finality, InvoiceId, Reference, WallTime, What,
};

use super::steps::{broken, end_well, hand_over, insist};
use crate::chance::Chance;
use crate::profile::{self, Provider};
use crate::record::{Asked, Call, Heard, Promise};
use crate::world::{Setting, World};

/// Outlasts every story.
const LONG: Duration = Duration::from_secs(290);
const RETRY: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(120);
/// A leadership that changes holds ClusterTime up for so long.
const STANDSTILL_MAX: Duration = Duration::from_secs(6);
/// The desk, in the histories of calls: callers count from 1,000 on.
const DESK_IN_HISTORIES: u64 = 1;

pub fn setting(chance: &Chance) -> Setting {
    let provider = chance.below(Provider::ALL.len() as u64);
    Setting {
        callers: 1,
        provider: Provider::ALL[usize::try_from(provider).unwrap_or(0)],
        ..Setting::default()
    }
}

type Story = fn(&mut World, &str) -> Result<()>;

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    let mut stories: Vec<(&str, Story)> = vec![
        ("overslept", overslept),
        ("old-look-up", an_old_look_up),
        ("second-object", a_second_object),
        ("hasty-person", a_hasty_person),
    ];
    while !stories.is_empty() {
        let next = usize::try_from(world.chance.below(stories.len() as u64))?;
        let (name, story) = stories.remove(next);
        let invoice = format!("{name}-{}", world.seed);
        submit(world, &invoice)?;
        story(world, &invoice)?;
        if world.chance.below(2) == 0 {
            // Whoever leads then knows the old tokens from the log alone.
            hand_over(world)?;
        }
    }
    end_well(world)
}

fn submit(world: &mut World, invoice: &str) -> Result<()> {
    let bill = v1::Invoice {
        invoice_id: invoice.to_owned(),
        customer_id: "ana".to_owned(),
        amount_minor: 500,
        currency: "USD".to_owned(),
        ..Default::default()
    };
    insist(world, "submit an invoice", move |client| {
        let bill = bill.clone();
        async move { client.submit_invoices([bill], |_| {}).await.map(|_| ()) }
    })
}

/// Says it until it is answered. A refusal is an answer; by then the properties have seen what it did.
fn say<T, F, Fut>(world: &mut World, what: &str, word: F) -> Result<Result<T, Rejection>>
where
    T: Send + 'static,
    F: Fn(Client) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Failure>> + 'static,
{
    let answer = world.desk_do(what, move |client| async move {
        loop {
            match word(client.clone()).await {
                Ok(done) => return Ok(done),
                Err(Failure::Rejected(rejection)) => return Err(rejection),
                Err(Failure::NotApplied(_) | Failure::Unknown(_)) => {
                    client.env().clock.sleep(RETRY).await;
                }
            }
        }
    })?;
    world.look()?;
    let heard = match &answer {
        Ok(_) => "yes".to_owned(),
        Err(rejection) => rejection.to_string(),
    };
    world.note(format_args!("somebody wants to {what}: {heard}"));
    Ok(answer)
}

/// Queues for the lease and falls silent: it is neither renewed nor given back.
fn hold(world: &mut World, invoice: &str, holder: &str, ttl: Duration) -> Result<FencingToken> {
    let (id, holder) = (invoice.to_owned(), holder.to_owned());
    let token = insist(world, "hold a lease", move |client| {
        let (id, holder) = (id.clone(), holder.clone());
        async move {
            let options = AcquireOptions::wait(PATIENCE / 2).ttl(ttl);
            let guard = client.acquire(&id, &holder, options).await?;
            let token = guard.token();
            forget(guard);
            Ok(token)
        }
    })?;
    let promise = Promise::Granted { token: token.0 };
    world.record.promise(&InvoiceId::new(invoice)?, promise);
    Ok(token)
}

/// As the provider of this world has them, so that the properties ask what was promised here.
fn terms(world: &World, can_look_up: bool) -> v1::ChargeTerms {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    v1::ChargeTerms {
        provider: "hand".to_owned(),
        account: "default".to_owned(),
        live: false,
        fingerprint: b"by hand".to_vec(),
        valid_for_ms: ms(profile::VALID_FOR),
        in_flight_max_ms: ms(profile::IN_FLIGHT_MAX),
        can_look_up,
        sticky: world.setting.provider.sticky(),
    }
}

/// What is not due yet is waited for.
fn begin(
    world: &mut World,
    invoice: &str,
    token: FencingToken,
    can_look_up: bool,
) -> Result<Result<v1::ChargeAttempt, Rejection>> {
    let terms = terms(world, can_look_up);
    loop {
        let (id, terms) = (invoice.to_owned(), terms.clone());
        let begun = say(world, "begin", move |client| {
            let (id, terms) = (id.clone(), terms.clone());
            async move { client.begin_charge(&id, token, Some(terms)).await }
        })?;
        match begun {
            Err(Rejection::NotDue { due_in_ms, .. }) => {
                world.pass(Duration::from_millis(due_in_ms + 20))?;
            }
            begun => return Ok(begun.map(|begun| begun.attempt)),
        }
    }
}

/// The key of the attempt.
fn must_begin(
    world: &mut World,
    invoice: &str,
    token: FencingToken,
    can_look_up: bool,
) -> Result<String> {
    begin(world, invoice, token, can_look_up)?
        .map(|attempt| attempt.idempotency_key)
        .map_err(|rejection| anyhow!("not begun: {rejection}"))
}

fn settle(
    world: &mut World,
    invoice: &str,
    token: FencingToken,
    key: &str,
    outcome: Outcome,
) -> Result<Result<v1::InvoiceStatus, Rejection>> {
    let (id, key) = (invoice.to_owned(), key.to_owned());
    say(world, "settle", move |client| {
        let (id, key, outcome) = (id.clone(), key.clone(), outcome.clone());
        async move { client.settle_charge(&id, token, &key, &outcome).await }
    })
}

/// One charge an attempt, whoever tells of it.
fn charged(reference: &str) -> Result<Outcome> {
    Ok(Outcome::Charged(Charged {
        reference: Reference::new(reference)?,
        amount: None,
        currency: None,
    }))
}

/// A charge is a fact, whoever holds the lease; and here every one of them was foreseen.
fn pays(
    world: &mut World,
    invoice: &str,
    token: FencingToken,
    key: &str,
    reference: String,
) -> Result<()> {
    let told = settle(world, invoice, token, key, charged(&reference)?)?;
    ensure!(
        told == Ok(v1::InvoiceStatus::Paid),
        "it was charged, and is {told:?}"
    );
    let promise = Promise::Charged { reference };
    world.record.promise(&InvoiceId::new(invoice)?, promise);
    Ok(())
}

fn declined(finality: Finality, retryable: bool) -> Result<Outcome> {
    Ok(Outcome::Declined {
        code: DeclineCode::new("card_declined")?,
        retryable,
        finality,
    })
}

fn attach(
    world: &mut World,
    invoice: &str,
    token: FencingToken,
    object: &str,
) -> Result<Result<String, Rejection>> {
    let (id, object) = (invoice.to_owned(), object.to_owned());
    say(world, "attach an object", move |client| {
        let (id, object) = (id.clone(), object.clone());
        async move { client.attach_provider_object(&id, token, &object).await }
    })
}

/// Ends a lease as leases end whose holder says nothing: by time, or by a person.
fn ends(world: &mut World, invoice: &str, token: FencingToken) -> Result<()> {
    if world.chance.below(3) == 0 {
        ends_by_force(world, invoice)?;
    }
    let id = InvoiceId::new(invoice)?;
    world.until("the lease ends", |world| {
        let known = world.replay().invoices().get(&id);
        known.is_some_and(|known| known.lease.is_none_or(|lease| lease.token != token.0))
    })
}

fn ends_by_force(world: &mut World, invoice: &str) -> Result<()> {
    let id = invoice.to_owned();
    say(world, "force-release it", move |client| {
        let id = id.clone();
        async move { client.force_release(&id, "it hangs").await }
    })?
    .map(|_| ())
    .map_err(|rejection| anyhow!("not released by force: {rejection}"))
}

/// What somebody says with a token of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Begin,
    Attach,
    Decline(Finality),
    LookUp,
    Pending,
    Unknown,
    Renew,
    Release,
}

const WORDS: [Word; 11] = [
    Word::Begin,
    Word::Attach,
    Word::Decline(Finality::None),
    Word::Decline(Finality::Sticky),
    Word::Decline(Finality::SoleSend),
    Word::Decline(Finality::Object),
    Word::LookUp,
    Word::Pending,
    Word::Unknown,
    Word::Renew,
    Word::Release,
];

/// A holder oversleeps, somebody else takes over, and then it wakes up.
fn overslept(world: &mut World, invoice: &str) -> Result<()> {
    let short = world.chance.between_ms(2_500, 6_000);
    let old = hold(world, invoice, "overslept", short)?;
    // In some runs it had begun before it fell asleep.
    let mut begun = match world.chance.below(3) {
        0 => None,
        _ => begin(world, invoice, old, true)?.ok(),
    };
    ends(world, invoice, old)?;
    if let (0, Some(attempt)) = (world.chance.below(3), &begun) {
        words(world, invoice, old, &attempt.idempotency_key)?;
    }
    let new = hold(world, invoice, "successor", LONG)?;
    if begun.is_none() || world.chance.below(2) == 0 {
        begun = begin(world, invoice, new, true)?.ok().or(begun);
    }
    let key = begun.context("nobody could begin")?.idempotency_key;
    words(world, invoice, old, &key)?;
    pays(world, invoice, new, &key, format!("hand-{key}"))?;
    words(world, invoice, old, &key)
}

/// All of them, in any order.
fn words(world: &mut World, invoice: &str, old: FencingToken, key: &str) -> Result<()> {
    let mut left = WORDS.to_vec();
    while !left.is_empty() {
        let word = left.swap_remove(usize::try_from(world.chance.below(left.len() as u64))?);
        speak(world, invoice, old, key, word)?;
        let pause = world.chance.between_ms(0, 300);
        world.pass(pause)?;
    }
    Ok(())
}

/// One word under an old token, put into the history of the invoice. It must be refused; of a release, it must be said that
/// it came too late.
fn speak(world: &mut World, invoice: &str, old: FencingToken, key: &str, word: Word) -> Result<()> {
    let called = world.elapsed();
    let token = old.0;
    let settled = Asked::Settle {
        token,
        charged: false,
    };
    world.note(format_args!("with the old token {old}: {word:?}"));
    let told = |told: Result<v1::InvoiceStatus, Rejection>| told.map(|_| Heard::Settled);
    let (asked, heard) = match word {
        Word::Begin => {
            let begun = begin(world, invoice, old, true)?.map(|attempt| attempt.number);
            let heard = begun.map(|attempt| Heard::Begun { attempt });
            (Some(Asked::Begin { token }), heard)
        }
        Word::Attach => {
            let attached = attach(world, invoice, old, "pi_stale")?;
            (None, attached.map(|_| Heard::Settled))
        }
        Word::Decline(finality) => {
            let said = declined(finality, false)?;
            (Some(settled), told(settle(world, invoice, old, key, said)?))
        }
        Word::LookUp => {
            let said = Outcome::LookedUp(None);
            (Some(settled), told(settle(world, invoice, old, key, said)?))
        }
        Word::Pending => {
            let expected_by =
                WallTime(world.records().last().map_or(0, |s| s.record.wall.0) + 5_000);
            let said = Outcome::Pending { expected_by };
            (Some(settled), told(settle(world, invoice, old, key, said)?))
        }
        Word::Unknown => {
            let said = Outcome::Unknown { detail: None };
            (Some(settled), told(settle(world, invoice, old, key, said)?))
        }
        Word::Renew => {
            let id = invoice.to_owned();
            let renewed = say(world, "renew", move |client| {
                let id = id.clone();
                async move { client.renew_lease(&id, old, LONG).await }
            })?;
            (
                Some(Asked::Renew { token }),
                renewed.map(|_| Heard::Renewed),
            )
        }
        Word::Release => {
            let id = invoice.to_owned();
            let released = say(world, "release", move |client| {
                let id = id.clone();
                async move { client.release_lease(&id, old).await }
            })?;
            let heard = released.map(|was_current| Heard::Released { was_current });
            (Some(Asked::Release { token }), heard)
        }
    };
    let heard = match heard {
        Ok(heard) => heard,
        Err(
            Rejection::StaleToken { .. }
            | Rejection::LeaseExpired { .. }
            | Rejection::LeaseEnded { .. },
        ) => Heard::Stale,
        // It is over, one way or the other: no call of the history says more than the record of its end.
        Err(_) => return Ok(()),
    };
    if let Some(asked) = asked {
        world.record.call(Call {
            who: DESK_IN_HISTORIES,
            invoice: invoice.to_owned(),
            asked,
            heard: heard.clone(),
            called,
            returned: Some(world.elapsed()),
        });
    }
    match heard {
        Heard::Stale => Ok(()),
        Heard::Released { was_current } => {
            let promise = Promise::Released { token, was_current };
            world.record.promise(&InvoiceId::new(invoice)?, promise);
            Ok(())
        }
        heard => {
            let what = format!("{word:?} with the old token {old} was taken: {heard:?}");
            Err(broken("stale_token_refused", Some(invoice), what))
        }
    }
}

/// A look-up under a lease that was granted before the last send could have been seen proves nothing, however late it is told;
/// one under a later lease does.
fn an_old_look_up(world: &mut World, invoice: &str) -> Result<()> {
    let quiet = world.promises.valid_for + world.promises.in_flight_max;
    let mut holder = hold(world, invoice, "first", LONG)?;
    let key = must_begin(world, invoice, holder, true)?;
    let begun_at = world.elapsed();
    if world.chance.below(2) == 0 {
        // A successor that came too early knows no more than the first one did.
        ends_by_force(world, invoice)?;
        let later = world.chance.between_ms(0, 8_000);
        world.pass(later)?;
        holder = hold(world, invoice, "early successor", LONG)?;
    }
    let until = begun_at + quiet + STANDSTILL_MAX + world.chance.between_ms(0, 20_000);
    world.pass(until.saturating_sub(world.elapsed()))?;
    let told = settle(world, invoice, holder, &key, Outcome::LookedUp(None))?;
    if told != Ok(v1::InvoiceStatus::InDoubt) {
        let what = format!("nothing was found under an old lease, and it is {told:?}");
        return Err(broken("doubt_needs_evidence", Some(invoice), what));
    }
    let late = hold(world, invoice, "late successor", LONG)?;
    let told = settle(world, invoice, late, &key, Outcome::LookedUp(None))?;
    ensure!(
        told == Ok(v1::InvoiceStatus::Pending),
        "nothing was found under a new lease, and it is {told:?}"
    );
    Ok(())
}

/// Every holder has made an object of its own, and all hear of the first one, in the next attempt too.
fn a_second_object(world: &mut World, invoice: &str) -> Result<()> {
    let first = hold(world, invoice, "first", LONG)?;
    must_begin(world, invoice, first, true)?;
    attaches(world, invoice, first, "pi_1")?;
    if world.chance.below(2) == 0 {
        // The answer was lost, and its gate made another one.
        attaches(world, invoice, first, "pi_2")?;
    }
    ends_by_force(world, invoice)?;
    let mut holder = hold(world, invoice, "successor", LONG)?;
    let mut key = must_begin(world, invoice, holder, true)?;
    attaches(world, invoice, holder, "pi_3")?;
    if world.chance.below(2) == 0 {
        let no = declined(Finality::Object, true)?;
        let told = settle(world, invoice, holder, &key, no)?;
        ensure!(
            told == Ok(v1::InvoiceStatus::Pending),
            "a no to the object, and it is {told:?}"
        );
        holder = hold(world, invoice, "next attempt", LONG)?;
        key = must_begin(world, invoice, holder, true)?;
        attaches(world, invoice, holder, "pi_4")?;
    }
    pays(world, invoice, holder, &key, "pi_1".to_owned())
}

/// Whoever attaches an object here is told of the first one.
fn attaches(world: &mut World, invoice: &str, token: FencingToken, object: &str) -> Result<()> {
    let told = attach(world, invoice, token, object)?;
    if told.as_deref() == Ok("pi_1") {
        return Ok(());
    }
    let what = format!("{object} was attached after pi_1, and its holder was told {told:?}");
    Err(broken("one_open_attempt", Some(invoice), what))
}

/// An attempt at a provider that cannot be looked up: a person wants the invoice back in the queue, or cancelled, before anybody
/// knows what became of it. When it is in REVIEW, too.
fn a_hasty_person(world: &mut World, invoice: &str) -> Result<()> {
    let holder = hold(world, invoice, "first", LONG)?;
    let key = must_begin(world, invoice, holder, false)?;
    hasty(world, invoice)?;
    match world.chance.below(2) {
        0 => ends_by_force(world, invoice)?,
        _ => {
            let silence = Outcome::Unknown { detail: None };
            let told = settle(world, invoice, holder, &key, silence)?;
            ensure!(
                told == Ok(v1::InvoiceStatus::InDoubt),
                "nobody knows, and it is {told:?}"
            );
        }
    }
    hasty(world, invoice)?;
    let id = InvoiceId::new(invoice)?;
    world.until_within(PATIENCE, "the invoice is put before a person", |world| {
        let reviewed = |seen: &crate::world::Seen| {
            matches!(seen.record.what, What::PutInReview { .. })
                && seen.record.invoice.as_ref() == Some(&id)
        };
        world.records().iter().any(reviewed)
    })?;
    hasty(world, invoice)?;
    if world.chance.below(2) == 0 {
        // It was charged after all: a second attempt would have charged it twice.
        return pays(
            world,
            invoice,
            FencingToken::NONE,
            &key,
            format!("hand-{key}"),
        );
    }
    let (id, of) = (invoice.to_owned(), key.clone());
    let told = say(world, "resolve it", move |client| {
        let (id, of) = (id.clone(), of.clone());
        async move { client.resolve_charge(&id, &of, None, "the books").await }
    })?;
    ensure!(
        told == Ok(v1::InvoiceStatus::Failed),
        "not charged, and it is {told:?}"
    );
    let told = requeue(world, invoice)?;
    ensure!(
        told == Ok(v1::InvoiceStatus::Pending),
        "requeued, and it is {told:?}"
    );
    let holder = hold(world, invoice, "second attempt", LONG)?;
    let key = must_begin(world, invoice, holder, false)?;
    pays(world, invoice, holder, &key, format!("hand-{key}"))
}

fn requeue(world: &mut World, invoice: &str) -> Result<Result<v1::InvoiceStatus, Rejection>> {
    let id = invoice.to_owned();
    say(world, "requeue it", move |client| {
        let id = id.clone();
        async move { client.requeue_invoice(&id, "try again").await }
    })
}

/// Both wishes are refused, as long as an attempt is open.
fn hasty(world: &mut World, invoice: &str) -> Result<()> {
    let id = invoice.to_owned();
    let cancelled = say(world, "cancel it", move |client| {
        let id = id.clone();
        async move { client.cancel_invoice(&id, "not wanted").await }
    })?;
    for told in [cancelled, requeue(world, invoice)?] {
        if told.is_ok() {
            let what = format!("a person changed what is open: {told:?}");
            return Err(broken("one_open_attempt", Some(invoice), what));
        }
    }
    Ok(())
}
