//! BeginCharge, RenewLease and SettleCharge are sent twice, to two nodes, at once or seconds apart, while the leadership moves.
//! One attempt is begun, one charge is recorded, both copies hear the same; and copies that come when all is over change nothing.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, ensure};
use billing_client::{AcquireOptions, v1};
use billing_core::What;
use billing_proto::v1::{
    charge_service_client::ChargeServiceClient,
    lease_service_client::LeaseServiceClient,
    settle_charge_request::{Charged, Outcome},
};

use super::raw;
use super::steps::{all_but, broken, done, end_well, hand_over, insist, pick};
use crate::machines::caller::terms;
use crate::world::World;

const TTL: Duration = Duration::from_secs(120);

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    world.leader(&all)?;
    for round in 1..=4 {
        one_invoice(world, &format!("hand-{round}"))?;
    }
    end_well(world)
}

fn one_invoice(world: &mut World, invoice: &str) -> Result<()> {
    let bill = v1::Invoice {
        invoice_id: invoice.to_owned(),
        customer_id: "hand".to_owned(),
        amount_minor: 7,
        currency: "USD".to_owned(),
        ..Default::default()
    };
    let id = invoice.to_owned();
    let token = insist(
        world,
        "submit an invoice and take its lease",
        move |client| {
            let (bill, id) = (bill.clone(), id.clone());
            async move {
                client.submit_invoices(vec![bill], |_| {}).await?;
                let guard = client
                    .acquire(&id, "hand", AcquireOptions::default().ttl(TTL))
                    .await?;
                let token = guard.token().0;
                std::mem::forget(guard); // Only copies speak for it.
                Ok(token)
            }
        },
    )?;
    let begin = v1::BeginChargeRequest {
        invoice_id: invoice.to_owned(),
        token,
        terms: Some(terms()),
    };
    let begun = twice(
        world,
        invoice,
        "begin",
        begin.clone(),
        |channel, request| async move {
            let answer = ChargeServiceClient::new(channel)
                .begin_charge(request)
                .await?;
            let attempt = answer.into_inner().attempt.unwrap_or_default();
            Ok(attempt.idempotency_key)
        },
    )?;
    let renew = v1::RenewLeaseRequest {
        invoice_id: invoice.to_owned(),
        token,
        ttl_ms: u64::try_from(TTL.as_millis())?,
    };
    twice(
        world,
        invoice,
        "renew",
        renew,
        |channel, request| async move {
            let answer = LeaseServiceClient::new(channel)
                .renew_lease(request)
                .await?;
            Ok(answer.into_inner().lease.unwrap_or_default().token)
        },
    )?;
    let settle = v1::SettleChargeRequest {
        invoice_id: invoice.to_owned(),
        token,
        idempotency_key: begun,
        outcome: Some(Outcome::Charged(Charged {
            reference: format!("paid-{invoice}"),
            ..Default::default()
        })),
    };
    for when in ["settle", "settle when all is over"] {
        twice(
            world,
            invoice,
            when,
            settle.clone(),
            |channel, request| async move {
                ChargeServiceClient::new(channel)
                    .settle_charge(request)
                    .await
                    .map(|_| ())
            },
        )?;
    }
    world.look()?;
    for (what, is) in [
        (
            "begun",
            (|what| matches!(what, What::Begun)) as fn(&What) -> bool,
        ),
        ("charged", |what| matches!(what, What::Charged { .. })),
        ("paid", |what| matches!(what, What::Paid)),
    ] {
        let own = world.records().iter().filter(|seen| {
            let id = seen.record.invoice.as_ref();
            id.is_some_and(|id| id.as_str() == invoice) && is(&seen.record.what)
        });
        let times = own.count();
        if times != 1 {
            let what = format!("two copies of each request, and {what} {times} times");
            return Err(broken("same_request_same_answer", Some(invoice), what));
        }
    }
    // The copy of a begin that comes now finds nothing to begin.
    let first = pick(world, &[1, 2, 3])?;
    let nodes = world.setting.nodes;
    let late = world.desk_do("send a late copy", move |client| async move {
        raw::insist_on(client.env(), nodes, first, |channel| {
            let begin = begin.clone();
            async move { ChargeServiceClient::new(channel).begin_charge(begin).await }
        })
        .await
    })?;
    ensure!(late.is_err(), "begun again: {late:?}");
    Ok(())
}

/// Two copies to two nodes; what both heard.
fn twice<Q, T, F, Fut>(
    world: &mut World,
    invoice: &str,
    what: &'static str,
    request: Q,
    send: F,
) -> Result<T>
where
    Q: Clone + Send + 'static,
    T: PartialEq + std::fmt::Debug + Send + 'static,
    F: Fn(tonic::transport::Channel, Q) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Result<T, tonic::Status>> + 'static,
{
    let first = pick(world, &[1, 2, 3])?;
    let second = pick(world, &all_but(world, &[first]))?;
    let gap = match world.chance.below(3) {
        0 => Duration::ZERO,
        1 => world.chance.between_ms(1, 50),
        _ => world.chance.between_ms(50, 5_000),
    };
    if world.chance.below(3) == 0 {
        hand_over(world)?;
    }
    world.note(format_args!(
        "{what} {invoice} at nodes {first} and, {gap:?} later, {second}"
    ));
    let nodes = world.setting.nodes;
    let copy = |node: u64, after: Duration| {
        let request = request.clone();
        world.desk_begin(move |client| async move {
            client.env().clock.sleep(after).await;
            raw::insist_on(client.env(), nodes, node, |channel| {
                send(channel, request.clone())
            })
            .await
        })
    };
    let (one, other) = (copy(first, Duration::ZERO)?, copy(second, gap)?);
    let heard = (done(world, what, one)?, done(world, what, other)?);
    match heard {
        (Ok(one), Ok(other)) if one == other => Ok(one),
        heard => Err(broken(
            "same_request_same_answer",
            Some(invoice),
            format!("{what}: the copies heard {heard:?}"),
        )),
    }
}
