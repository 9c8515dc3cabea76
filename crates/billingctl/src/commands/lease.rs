//! `billingctl lease ...`

use billing_client::AcquireOptions;
use billing_proto::v1;

use super::{Context, cut, hold, page_size, watch};
use crate::{
    args::{Acquire, Lease as Verb},
    failure::{Exit, Problem},
    output::json::{self, ForceReleased, Granted, Lease, LeaseOf, Released, status},
};

pub async fn run(mut context: Context<'_, '_>, verb: Verb) -> Result<Exit, Problem> {
    match verb {
        Verb::Acquire(acquire) if acquire.command.is_empty() => {
            self::acquire(context, acquire).await
        }
        Verb::Acquire(acquire) => hold::run(context, acquire).await,
        Verb::Release { invoice_id, token } => {
            let was_current = context
                .cluster
                .release_lease(&invoice_id, token.token)
                .await?;
            context.printer().one(&Released {
                invoice_id,
                was_current,
            })?;
            Ok(Exit::Done)
        }
        Verb::Renew {
            invoice_id,
            token,
            ttl,
        } => {
            let lease = Lease::from(
                context
                    .cluster
                    .renew_lease(&invoice_id, token.token, ttl)
                    .await?,
            );
            context.printer().one(&Granted {
                lease,
                open_attempt: None,
            })?;
            Ok(Exit::Done)
        }
        Verb::Get { invoice_id, read } => {
            let lease = context
                .cluster
                .get_lease(&invoice_id, read.stale)
                .await?
                .map(Lease::from);
            context.printer().one(&LeaseOf { invoice_id, lease })?;
            Ok(Exit::Done)
        }
        Verb::List {
            holder,
            limit,
            read,
        } => list(context, holder, limit.limit, read.stale).await,
        Verb::Watch(watch) => watch::run(context, watch).await,
        Verb::ForceRelease { invoice_id, reason } => {
            let answer = context
                .cluster
                .force_release(&invoice_id, &reason.reason)
                .await?;
            let v1::ForceReleaseResponse {
                was_leased,
                status: number,
            } = answer;
            context.printer().one(&ForceReleased {
                invoice_id,
                was_leased,
                status: status(number),
            })?;
            Ok(Exit::Done)
        }
    }
}

async fn acquire(mut context: Context<'_, '_>, acquire: Acquire) -> Result<Exit, Problem> {
    let holder = acquire.holder.unwrap_or_else(holder_default);
    let options = AcquireOptions::wait(acquire.wait).ttl(acquire.ttl);
    let guard = context
        .cluster
        .acquire_lease(&acquire.invoice_id, &holder, options)
        .await?;
    let granted = Granted {
        lease: Lease {
            invoice_id: guard.invoice_id().to_owned(),
            token: guard.token().0,
            holder: guard.holder().to_owned(),
            session_id: json::hex(guard.session_id().as_bytes()),
            // What the holder may count on: a little less than what the cluster waits.
            expires_in_ms: u64::try_from(guard.remaining().as_millis()).unwrap_or(u64::MAX),
        },
        open_attempt: guard.open_attempt().cloned().map(Into::into),
    };
    // From here on whoever knows the token holds it; the guard must not give it back.
    guard.settled();
    context.printer().one(&granted)?;
    Ok(Exit::Done)
}

async fn list(
    mut context: Context<'_, '_>,
    holder: Option<String>,
    limit: u64,
    stale_ok: bool,
) -> Result<Exit, Problem> {
    let holder = holder.unwrap_or_default();
    let Context {
        cluster,
        cli,
        streams,
        ..
    } = &mut context;
    let mut printer =
        crate::output::Printer::new(streams.stdout, cli.output, streams.stdout_columns);
    let mut listing = printer.listing::<Lease>("leases");
    let mut page_token = String::new();
    let more = loop {
        let page_size = page_size(limit, listing.rows());
        let request = v1::ListLeasesRequest {
            holder: holder.clone(),
            page_size,
            page_token,
            stale_ok,
        };
        let page = cluster.list_leases(request).await?;
        let rows: Vec<Lease> = page.leases.into_iter().map(Lease::from).collect();
        listing.page(&rows)?;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break false;
        }
        if limit > 0 && listing.rows() >= limit {
            break true;
        }
    };
    listing.end(more, "no lease stands.")?;
    if more {
        context.say(&cut(limit));
    }
    Ok(Exit::Done)
}

/// `ana@host`, for people.
pub fn holder_default() -> String {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| format!("uid{}", rustix::process::getuid()));
    let system = rustix::system::uname();
    format!("{user}@{}", system.nodename().to_string_lossy())
}
