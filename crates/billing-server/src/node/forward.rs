//! Decides how a follower's commands get to the leader: what is queued now in one message, one hop. So do changes of the
//! membership, each by itself. Never forwards what was forwarded.

use std::collections::VecDeque;
use std::sync::Arc;

use billing_core::{Actor, Command};
use tokio::sync::Semaphore;
use tonic::Status;

use super::Inner;
use super::bounds::{BATCH_COMMANDS_MAX, FORWARDS_IN_FLIGHT_MAX};
use super::error::CallError;
use super::membership::{Change, Word};
use super::proposer::{self, Answer, Ask, Gather, refuse};
use crate::raft::links::{Lane, body, never_sent, payload};

/// The forwarder of one node; works while another node leads. Ends when the node does: then what was queued before is
/// answered.
pub(crate) async fn run(node: Arc<Inner>, mut gather: Gather) {
    let in_flight = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT_MAX));
    let mut closing = node.closing.subscribe();
    loop {
        let Ok(place) = in_flight.clone().acquire_owned().await else {
            return;
        };
        let batch = tokio::select! {
            biased;
            batch = gather.next() => batch,
            () = super::until_true(&mut closing) => {
                gather.close();
                gather.next().await
            }
        };
        let Some(batch) = batch else {
            drop(place);
            proposer::drained(&in_flight, FORWARDS_IN_FLIGHT_MAX).await;
            return;
        };
        let node = node.clone();
        tokio::spawn(async move {
            send(&node, batch).await;
            drop(place);
        });
    }
}

async fn send(node: &Inner, batch: Vec<Ask>) {
    let Some((leader, address)) = node.leader_address() else {
        refuse(batch, &CallError::not_applied(node.why_no_leader()));
        return;
    };
    if leader == node.config.node {
        refuse(
            batch,
            &CallError::not_applied("this node has just been elected"),
        );
        return;
    }
    let commands: Vec<(Actor, Command)> = batch
        .iter()
        .map(|ask| (ask.actor.clone(), ask.command.clone()))
        .collect();
    match call(node, leader, &address, &commands).await {
        Ok(answers) if answers.len() == batch.len() => {
            let mut answers = VecDeque::from(answers);
            for ask in batch {
                if let Some(answer) = answers.pop_front() {
                    ask.answer(answer);
                }
            }
        }
        Ok(answers) => refuse(
            batch,
            &CallError::unknown(format!("node {leader} gave {} answers", answers.len())),
        ),
        Err(error) => refuse(batch, &error),
    }
}

async fn call(
    node: &Inner,
    leader: u64,
    address: &str,
    commands: &Vec<(Actor, Command)>,
) -> Result<Vec<Answer>, CallError> {
    let before = |status: Status| CallError::not_applied(status.message());
    let mut link = node
        .links
        .to(leader, address, Lane::Calls)
        .map_err(before)?;
    let request = link.request(payload("commands", commands).map_err(before)?);
    let answered = tokio::select! {
        biased;
        answered = link.client.forward(request) => answered,
        () = node.env.clock.sleep(node.config.call_timeout) => {
            return Err(CallError::unknown(format!("node {leader} did not answer in time")));
        }
    };
    let response = answered.map_err(|status| {
        if never_sent(&status) {
            CallError::not_applied(format!("the leader, node {leader}, cannot be reached"))
        } else {
            CallError::unknown(format!("node {leader}: {}", status.message()))
        }
    })?;
    body("answers", response.get_ref()).map_err(|status| CallError::unknown(status.message()))
}

/// Asks the leader for a change of the membership.
pub(crate) async fn change(node: &Inner, change: &Change) -> Word {
    let Some((leader, address)) = node.leader_address() else {
        return Word::Elsewhere(node.why_no_leader());
    };
    let before = |status: Status| Word::Failed(CallError::not_applied(status.message()));
    let mut link = match node.links.to(leader, &address, Lane::Calls) {
        Ok(link) => link,
        Err(status) => return before(status),
    };
    let request = match payload("change", change) {
        Ok(change) => link.request(change),
        Err(status) => return before(status),
    };
    // The leader bounds the change itself; this is for a leader that is gone.
    let answered = tokio::select! {
        biased;
        answered = link.client.change_membership(request) => answered,
        () = node.env.clock.sleep(2 * node.config.call_timeout) => {
            return Word::Failed(CallError::unknown(format!("node {leader} did not answer in time: look at the members")));
        }
    };
    match answered {
        Ok(response) => body("word", response.get_ref())
            .unwrap_or_else(|status| Word::Failed(CallError::unknown(status.message()))),
        Err(status) if never_sent(&status) => {
            Word::Elsewhere(format!("the leader, node {leader}, cannot be reached"))
        }
        Err(status) => Word::Failed(CallError::unknown(format!(
            "node {leader}: {}: look at the members",
            status.message()
        ))),
    }
}

/// The leader's side: proposes what a follower sent. Answers in the same order.
pub(crate) async fn serve(node: &Inner, commands: Vec<(Actor, Command)>) -> Vec<Answer> {
    if commands.len() > BATCH_COMMANDS_MAX {
        let error = CallError::not_applied(format!(
            "{} commands at once, the bound is {BATCH_COMMANDS_MAX}",
            commands.len()
        ));
        return commands.iter().map(|_| Err(error.clone())).collect();
    }
    // All are queued before any is waited for: they belong into one batch, in their order.
    let asked: Vec<_> = commands
        .into_iter()
        .map(|(actor, command)| node.proposals.ask(actor, command))
        .collect();
    proposer::answers(asked, &node.env, node.config.call_timeout).await
}
