//! `billingctl lease watch`: prints grants and ends of leases as they happen. Decides from which index it begins and from
//! which one it could be resumed; the client goes on over another node when one fails.

use billing_client::{WatchOptions, Watched};
use billing_proto::v1;

use super::{Context, PAGE_ROWS, signals::Signals};
use crate::{
    args::{Format, Watch},
    cluster::Cluster,
    failure::{Exit, Problem},
    output::{Listing, Printer, json::LeaseEvent},
};

pub async fn run(mut context: Context<'_, '_>, watch: Watch) -> Result<Exit, Problem> {
    let mut signals = Signals::listen()?;
    let invoice_id = watch.invoice_id.clone().unwrap_or_default();
    let mut resume = Resume {
        next_index: watch.from.unwrap_or(0),
        invoice_id: watch.invoice_id.clone(),
    };
    let ended = {
        let Context {
            cluster,
            cli,
            streams,
            ..
        } = &mut context;
        // A document that never ends is no document.
        let format = match cli.output {
            Format::Json => Format::Jsonl,
            format => format,
        };
        let mut printer = Printer::new(streams.stdout, format, streams.stdout_columns);
        let mut listing = printer.listing::<LeaseEvent>("events");
        tokio::select! {
            biased;
            _ = signals.next() => Ok(()),
            ended = follow(cluster, &watch, &invoice_id, &mut listing, &mut resume) => ended,
        }
    };
    let said = resume.said();
    match ended {
        Ok(()) => {
            context.say(&said);
            Ok(Exit::Done)
        }
        // Nothing was asked to change: a watch that cannot go on has failed, and its reader loses nothing by resuming.
        Err(Problem::Failed(words) | Problem::Unknown(words)) => {
            if resume.next_index > 0 {
                context.say(&said);
            }
            Err(Problem::failed(words.what, words.next))
        }
        Err(problem) => Err(problem),
    }
}

/// From where the same watch misses nothing.
struct Resume {
    /// 0: not known yet.
    next_index: u64,
    invoice_id: Option<String>,
}

impl Resume {
    fn said(&self) -> String {
        let invoice = self
            .invoice_id
            .as_ref()
            .map(|id| format!(" {id}"))
            .unwrap_or_default();
        match self.next_index {
            0 => "nothing was seen".to_owned(),
            next => format!("resume with: billingctl lease watch{invoice} --from {next}"),
        }
    }
}

async fn follow(
    cluster: &Cluster,
    watch: &Watch,
    invoice_id: &str,
    listing: &mut Listing<'_, '_, LeaseEvent>,
    resume: &mut Resume,
) -> Result<(), Problem> {
    if watch.list {
        resume.next_index = standing(cluster, invoice_id, listing).await?;
    }
    let options = match invoice_id {
        "" => WatchOptions::all(),
        one => WatchOptions::invoice(one),
    };
    let mut watching = cluster
        .watch_leases(options.from(resume.next_index))
        .await?;
    let mut seen = 0;
    while let Some(watched) = watching.next().await? {
        let next_index = watched.next_index();
        match watched {
            Watched::Progress { .. } => resume.next_index = next_index,
            Watched::Event(event) => {
                // Seen once it is printed.
                listing.now(LeaseEvent::from(event))?;
                resume.next_index = next_index;
                seen += 1;
                if watch.count.is_some_and(|count| seen >= count) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Prints what stands, and returns the index from which on a watch misses nothing that happened since.
async fn standing(
    cluster: &Cluster,
    invoice_id: &str,
    listing: &mut Listing<'_, '_, LeaseEvent>,
) -> Result<u64, Problem> {
    if !invoice_id.is_empty() {
        // The index first: what happens between the two questions is told twice rather than not at all.
        let request = v1::ListLeasesRequest {
            page_size: 1,
            ..Default::default()
        };
        let from = cluster.list_leases(request).await?.watch_index;
        if let Some(lease) = cluster.get_lease(invoice_id, false).await? {
            listing.now(LeaseEvent::standing(lease))?;
        }
        return Ok(from);
    }
    let mut from = None;
    let mut page_token = String::new();
    loop {
        let request = v1::ListLeasesRequest {
            page_size: u32::try_from(PAGE_ROWS).unwrap_or(u32::MAX),
            page_token,
            ..Default::default()
        };
        let page = cluster.list_leases(request).await?;
        // Of the first page: what happens between two pages is told by the watch.
        let from = *from.get_or_insert(page.watch_index);
        for lease in page.leases {
            listing.now(LeaseEvent::standing(lease))?;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(from);
        }
    }
}
