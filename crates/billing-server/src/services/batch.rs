//! AcquireLeases, RenewLeases, ReleaseLeases: many items in one command. Decides into how many commands a request goes; an item
//! that cannot be read is refused by itself, and no item depends on another.

use billing_core::{AcquireLease, Actor, Command, OutOfBounds, ReleaseLease, RenewLease, Reply};
use billing_proto::{Failure, request, v1};
use futures::future::join_all;
use serde::Serialize;
use tonic::Status;

use super::{Caller, Door, answer, rejected, who};
use crate::node::BATCH_BYTES_MAX;

/// What a command takes beside its actor and its items: its kind, and how many there are.
const FRAME_BYTES: usize = 16;

pub(super) async fn acquire(
    door: &Door,
    caller: &Caller,
    request: v1::AcquireLeasesRequest,
) -> Result<v1::AcquireLeasesResponse, Status> {
    use v1::acquire_leases_response::{Item, item::Result as Item_};
    let read = |one: &v1::AcquireLeaseRequest| request::acquire_lease(one, || door.draw_id());
    let actor = caller.actor(holder_of_all(&request.items));
    let propose = |actor, acquires: Vec<AcquireLease>| door.acquire_each(actor, acquires);
    let results = each(&request.items, read, actor, propose).await?;
    let items = results.into_iter().map(|result| {
        let granted = answer!(item: result, Reply::Leased(leased) => leased);
        Item {
            result: Some(granted.map_or_else(Item_::Error, |leased| Item_::Granted(leased.into()))),
        }
    });
    Ok(v1::AcquireLeasesResponse {
        items: items.collect(),
    })
}

pub(super) async fn renew(
    door: &Door,
    caller: &Caller,
    request: v1::RenewLeasesRequest,
) -> Result<v1::RenewLeasesResponse, Status> {
    use v1::renew_leases_response::{Item, item::Result as Item_};
    let propose = |actor, renewals: Vec<RenewLease>| {
        door.one_for_each(actor, renewals.len(), Command::RenewLeases(renewals))
    };
    let actor = caller.actor(who::WORKER);
    let results = each(
        &request.items,
        |one| RenewLease::try_from(one),
        actor,
        propose,
    )
    .await?;
    let items = results.into_iter().map(|result| {
        let renewed = answer!(item: result, Reply::Renewed(lease) => lease);
        let renewed = renewed.map(|lease| v1::RenewLeaseResponse {
            lease: Some(lease.into()),
        });
        Item {
            result: Some(renewed.map_or_else(Item_::Error, Item_::Renewed)),
        }
    });
    Ok(v1::RenewLeasesResponse {
        items: items.collect(),
    })
}

pub(super) async fn release(
    door: &Door,
    caller: &Caller,
    request: v1::ReleaseLeasesRequest,
) -> Result<v1::ReleaseLeasesResponse, Status> {
    use v1::release_leases_response::{Item, item::Result as Item_};
    let propose = |actor, releases: Vec<ReleaseLease>| {
        door.one_for_each(actor, releases.len(), Command::ReleaseLeases(releases))
    };
    let actor = caller.actor(who::WORKER);
    let results = each(
        &request.items,
        |one| ReleaseLease::try_from(one),
        actor,
        propose,
    )
    .await?;
    let items = results.into_iter().map(|result| {
        let released = answer!(item: result, Reply::Released { was_current } => was_current);
        let released = released.map(|was_current| v1::ReleaseLeaseResponse { was_current });
        Item {
            result: Some(released.map_or_else(Item_::Error, Item_::Released)),
        }
    });
    Ok(v1::ReleaseLeasesResponse {
        items: items.collect(),
    })
}

/// What the one who acquires calls itself; inside a session the ledger knows.
pub(super) fn holder(request: &v1::AcquireLeaseRequest) -> &str {
    if request.session_id.is_empty() {
        &request.holder
    } else {
        who::WORKER
    }
}

/// One command is recorded for one caller: the holder, where all items name the same.
fn holder_of_all(items: &[v1::AcquireLeaseRequest]) -> &str {
    let mut holders = items.iter().map(holder);
    match holders.next() {
        Some(first) if holders.all(|other| other == first) => first,
        _ => who::WORKER,
    }
}

/// A result for each item, in order: its refusal if it could not be read, else what became of it.
async fn each<Wire, Item, Asked>(
    items: &[Wire],
    read: impl Fn(&Wire) -> Result<Item, OutOfBounds>,
    actor: Actor,
    propose: impl Fn(Actor, Vec<Item>) -> Asked,
) -> Result<Vec<Result<Reply, Failure>>, Status>
where
    Item: Serialize,
    Asked: Future<Output = Vec<Result<Reply, Failure>>>,
{
    request::items(items.len()).map_err(rejected)?;
    let mut readable = Vec::with_capacity(items.len());
    let mut unread = Vec::with_capacity(items.len());
    for item in items {
        match read(item) {
            Ok(item) => {
                readable.push(item);
                unread.push(None);
            }
            Err(out) => unread.push(Some(Failure::Rejected(out.into()))),
        }
    }
    // All are queued, in order, before the first is waited for.
    let commands = split(readable, room(&actor));
    let asked = commands
        .into_iter()
        .map(|items| propose(actor.clone(), items));
    let mut answers = join_all(asked).await.into_iter().flatten();
    let results = unread.into_iter().map(|unread| match unread {
        Some(failure) => Err(failure),
        None => answers.next().unwrap_or_else(|| {
            Err(Failure::Unknown(billing_proto::status::outcome_unknown(
                "an answer is missing",
            )))
        }),
    });
    Ok(results.collect())
}

/// Bytes that the items of one command may take.
fn room(actor: &Actor) -> usize {
    BATCH_BYTES_MAX.saturating_sub(size(actor) + FRAME_BYTES)
}

fn size(value: &impl Serialize) -> usize {
    // What cannot be measured gets a command of its own, which says why it cannot be encoded.
    postcard::experimental::serialized_size(value).unwrap_or(BATCH_BYTES_MAX)
}

/// As few runs of the items as fit into `room` bytes each.
fn split<Item: Serialize>(items: Vec<Item>, room: usize) -> Vec<Vec<Item>> {
    let mut runs = Vec::new();
    let mut run = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        if bytes + more > room && !run.is_empty() {
            runs.push(std::mem::take(&mut run));
            bytes = 0;
        }
        bytes += more;
        run.push(item);
    }
    if !run.is_empty() {
        runs.push(run);
    }
    runs
}

#[cfg(test)]
mod tests {
    use billing_core::{FencingToken, InvoiceId};

    use super::*;

    fn releases(count: usize, id_bytes: usize) -> Result<Vec<ReleaseLease>, OutOfBounds> {
        let release = |nth: usize| {
            Ok(ReleaseLease::ByToken {
                invoice: InvoiceId::new(&format!("{nth:0id_bytes$}"))?,
                token: FencingToken(u64::MAX),
            })
        };
        (0..count).map(release).collect()
    }

    #[test]
    fn a_request_is_one_command_while_it_fits_and_else_as_few_as_hold_it() -> Result<(), OutOfBounds>
    {
        let actor = Actor::new(&"a".repeat(128))?;
        for (id_bytes, commands) in [(20, 1), (128, 3)] {
            let items = releases(request::ITEMS_MAX, id_bytes)?;
            let runs = split(items.clone(), room(&actor));
            assert_eq!(runs.len(), commands, "ids of {id_bytes} bytes");
            assert_eq!(runs.concat(), items, "in order, each once");
            for run in runs {
                let command = (actor.clone(), Command::ReleaseLeases(run));
                assert!(size(&command) <= BATCH_BYTES_MAX, "{}", size(&command));
            }
        }
        assert!(split(releases(0, 1)?, room(&actor)).is_empty());
        Ok(())
    }
}
