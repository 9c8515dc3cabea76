//! `billingctl cluster members|add|promote|remove|transfer-leader`: who belongs to the cluster. Decides what is said before a
//! node leaves for ever, and how a newcomer is waited for; the cluster decides whether any of it may happen.

use std::{
    io::{BufRead, BufReader, Read},
    time::Duration,
};

use super::{Context, signals::Signals};
use crate::{
    args::{Add, Format, Promote, Remove},
    failure::{Exit, Problem, nobody_answers},
    output::members::{Added, Changed, Leads, Members, strength},
    progress::Progress,
    survey::Survey,
};

/// Between two looks at how far a newcomer has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub async fn members(mut context: Context<'_, '_>) -> Result<Exit, Problem> {
    let survey = survey(&context).await?;
    let members = Members::of(&survey);
    let mut printer = context.printer();
    match printer.format() {
        Format::Json => printer.one(&members)?,
        Format::Table | Format::Jsonl | Format::Name => {
            let people = printer.format() == Format::Table;
            let mut listing = printer.listing("members");
            listing.page(&members.members)?;
            listing.end(false, "no member.")?;
            if people {
                printer.below(&members)?;
            }
        }
    }
    if members.leader_id == 0 {
        context.say("! no leader answers: this is what the node knows that has applied most");
    }
    Ok(Exit::Done)
}

async fn survey(context: &Context<'_, '_>) -> Result<Survey, Problem> {
    let survey = Survey::ask(&context.cluster, &context.env).await;
    if survey.best().is_none() {
        return Err(nobody_answers(context.cluster.endpoints(), &context.env).await);
    }
    Ok(survey)
}

pub async fn add(mut context: Context<'_, '_>, add: Add) -> Result<Exit, Problem> {
    let Add {
        node_id,
        client_address,
        raft_address,
        wait,
    } = add;
    let last_log_index = context
        .cluster
        .add_learner(node_id, &client_address, &raft_address)
        .await?;
    if wait {
        wait_for(&mut context, node_id, last_log_index).await?;
    }
    context.printer().one(&Added {
        node_id,
        last_log_index,
        caught_up: wait,
    })?;
    context.say(&if wait {
        format!("next: billingctl cluster promote {node_id}, with --replaces ID to swap it for a voter")
    } else {
        format!("next: start it, and see its lag shrink: billingctl cluster members; then promote {node_id}")
    });
    Ok(Exit::Done)
}

/// Until the leader knows that the newcomer's log reaches `target`.
async fn wait_for(context: &mut Context<'_, '_>, node_id: u64, target: u64) -> Result<(), Problem> {
    let mut signals = Signals::listen()?;
    let Context {
        cluster,
        env,
        streams,
        ..
    } = context;
    let mut progress = Progress::new(
        streams.stderr,
        streams.stderr_is_terminal,
        &*env.clock,
        Some(target),
    );
    let stopped = |what: &str| {
        Problem::failed(
            format!("{what}; node {node_id} stays a learner and goes on copying"),
            "see how far it is: billingctl cluster members",
        )
    };
    loop {
        let status = tokio::select! {
            biased;
            _ = signals.next() => return Err(stopped("stopped waiting")),
            status = cluster.status() => status?,
        };
        let Some(member) = status
            .members
            .iter()
            .find(|member| member.node_id == node_id)
        else {
            return Err(Problem::failed(
                format!("node {node_id} was added and is no member any more"),
                "somebody else removed it: ask who works on this cluster",
            ));
        };
        if member.matched_index >= target {
            progress.finish();
            return Ok(());
        }
        progress.update(
            member.matched_index,
            &format!(
                "node {node_id} has {} of {target} entries",
                member.matched_index
            ),
        );
        tokio::select! {
            biased;
            _ = signals.next() => return Err(stopped("stopped waiting")),
            () = env.clock.sleep(LOOK_EVERY) => {}
        }
    }
}

pub async fn promote(mut context: Context<'_, '_>, promote: Promote) -> Result<Exit, Problem> {
    if let Some(replaced) = promote.replaces
        && !promote.yes.yes
    {
        let survey = survey(&context).await?;
        let voters = Members::of(&survey).voters;
        confirm(&mut context, replaced, &strength(voters))?;
    }
    let members = context
        .cluster
        .promote_member(promote.node_id, promote.replaces, promote.even.allow_even)
        .await?;
    context.printer().one(&Changed::new(members))?;
    Ok(Exit::Done)
}

pub async fn remove(mut context: Context<'_, '_>, remove: Remove) -> Result<Exit, Problem> {
    if !remove.yes.yes {
        let survey = survey(&context).await?;
        let members = Members::of(&survey);
        // Of a stranger there is nothing to say but what the cluster will.
        if let Some(state) = members
            .members
            .iter()
            .find(|state| state.member.node_id == remove.node_id)
        {
            let left = members.voters - u64::from(state.member.voter);
            confirm(&mut context, remove.node_id, &strength(left))?;
        }
    }
    let members = context
        .cluster
        .remove_member(remove.node_id, remove.even.allow_even)
        .await?;
    context.printer().one(&Changed::new(members))?;
    Ok(Exit::Done)
}

/// Says what will be, and on a terminal asks. Only a yes is a yes.
fn confirm(context: &mut Context<'_, '_>, node_id: u64, left: &str) -> Result<(), Problem> {
    let said = format!("node {node_id} leaves for ever, its id is never used again; then: {left}");
    if !context.streams.stdin_is_terminal {
        context.say(&said);
        return Ok(());
    }
    context.say(&format!("{said}\nGo on? [y/N]"));
    let answer = line(context.streams.stdin)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Problem::refused("not confirmed; nothing changed", ""))
}

/// A longer answer is not a yes.
const ANSWER_BYTES_MAX: u64 = 64;

fn line(stdin: &mut dyn Read) -> Result<String, Problem> {
    let mut line = String::new();
    BufReader::new(stdin.take(ANSWER_BYTES_MAX))
        .read_line(&mut line)
        .map_err(|error| {
            Problem::failed(
                format!("cannot read the answer: {error}"),
                "say --yes instead",
            )
        })?;
    Ok(line)
}

pub async fn transfer_leader(
    mut context: Context<'_, '_>,
    node_id: Option<u64>,
) -> Result<Exit, Problem> {
    let leader_id = context.cluster.transfer_leader(node_id).await?;
    context.printer().one(&Leads { leader_id })?;
    Ok(Exit::Done)
}
