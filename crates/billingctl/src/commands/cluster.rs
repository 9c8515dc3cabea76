//! `billingctl cluster ...`: the nodes, and the operator's switches.

use futures::future::join_all;

use super::{Context, backup, members};
use crate::{
    args::{Cluster as Verb, Format},
    failure::{Exit, IS_IT_RUNNING, Problem},
    output::{
        json::Switched,
        status::{Node, NodeStatus, Report},
    },
};

pub async fn run(mut context: Context<'_, '_>, verb: Verb) -> Result<Exit, Problem> {
    let switched = match verb {
        Verb::Status => return status(context).await,
        Verb::Members => return members::members(context).await,
        Verb::Add(add) => return members::add(context, add).await,
        Verb::Promote(promote) => return members::promote(context, promote).await,
        Verb::Remove(remove) => return members::remove(context, remove).await,
        Verb::TransferLeader { node_id } => {
            return members::transfer_leader(context, node_id).await;
        }
        Verb::Snapshot { nodes, patience } => {
            return backup::snapshot(context, nodes, patience).await;
        }
        Verb::Backup { out, force } => return backup::backup(context, out, force).await,
        Verb::Verify { file } => return backup::verify(context, &file),
        Verb::Restore(restore) => return backup::restore(context, restore).await,
        Verb::AllowCharges { evidence } => {
            context.cluster.allow_charges(&evidence).await?;
            Switched {
                provider: None,
                charges: "allowed",
            }
        }
        Verb::PauseProvider { provider, reason } => {
            context
                .cluster
                .pause_provider(&provider, true, &reason.reason)
                .await?;
            Switched {
                provider: Some(provider),
                charges: "paused",
            }
        }
        Verb::ResumeProvider { provider, reason } => {
            context
                .cluster
                .pause_provider(&provider, false, &reason.reason)
                .await?;
            Switched {
                provider: Some(provider),
                charges: "allowed",
            }
        }
    };
    context.printer().one(&switched)?;
    Ok(Exit::Done)
}

async fn status(mut context: Context<'_, '_>) -> Result<Exit, Problem> {
    // All at once: an endpoint that hangs must not hide the others, nor make the answer as late as all of them together.
    let nodes = join_all(context.cluster.endpoints().iter().map(|endpoint| {
        let cluster = &context.cluster;
        async move {
            match cluster.status_of(endpoint).await {
                Ok(said) => Node {
                    endpoint: endpoint.clone(),
                    error: None,
                    status: Some(NodeStatus::from(said)),
                },
                Err(error) => Node {
                    endpoint: endpoint.clone(),
                    error: Some(error),
                    status: None,
                },
            }
        }
    }))
    .await;
    let report = Report::new(nodes);
    let mut printer = context.printer();
    match printer.format() {
        Format::Json => printer.one(&report)?,
        Format::Table | Format::Jsonl | Format::Name => {
            let people = printer.format() == Format::Table;
            let mut listing = printer.listing("nodes");
            listing.page(&report.nodes)?;
            listing.end(false, "")?;
            if people {
                printer.below(&report)?;
            }
        }
    }
    for problem in &report.problems {
        context.say(&format!("! {}", crate::output::clean(problem)));
    }
    if report.nodes.iter().all(|node| node.status.is_none()) {
        context.say(&format!("next: {IS_IT_RUNNING}"));
    }
    Ok(if report.healthy() {
        Exit::Done
    } else {
        Exit::Failed
    })
}
