//! What a change of members is judged by, without a cluster.

use super::*;

fn peer(node: u64) -> Peer {
    Peer {
        client: format!("10.0.0.{node}:7101"),
        raft: format!("10.0.0.{node}:7201"),
    }
}

fn three() -> Scene {
    let all = BTreeSet::from([1, 2, 3]);
    Scene {
        me: 1,
        membership: None,
        joint: false,
        voters: all.clone(),
        nodes: all.iter().map(|&id| (id, peer(id))).collect(),
        used: all.clone(),
        heard: all.into_iter().map(|id| (id, Duration::ZERO)).collect(),
        matched: BTreeMap::new(),
        last_log: 0,
    }
}

#[test]
fn a_change_needs_the_word_of_those_who_vote_now_too() {
    // 2 has been dead for a day and 4 shall take its place; now 3 does not answer either.
    let mut scene = three();
    scene.nodes.insert(4, peer(4));
    scene.heard = BTreeMap::from([(1, Duration::ZERO), (4, Duration::ZERO)]);
    let wanted = BTreeSet::from([1, 3, 4]);
    let refused = scene.sound(4, &wanted, false).err();
    assert!(
        refused.is_some_and(|Refusal(_, _, why)| why.contains("of today (1, 2, 3) only 1 of 2")),
    );
    scene.heard.insert(3, Duration::ZERO);
    assert!(scene.sound(4, &wanted, false).is_ok());
}

#[test]
fn a_learner_is_no_heir() {
    let mut scene = three();
    scene.nodes.insert(4, peer(4));
    scene.heard.insert(4, Duration::ZERO);
    scene.matched = BTreeMap::from([(2, 7), (3, 7), (4, 9)]);
    scene.last_log = 9;
    let wanted = BTreeSet::from([2, 3, 4]);
    assert_eq!(scene.heirs(&wanted), [2, 3]);
}

#[test]
fn an_heir_was_heard_from_and_has_the_longest_log() {
    let mut scene = three();
    let voters = scene.voters.clone();
    scene.last_log = 200;
    scene.matched = BTreeMap::from([(2, 200), (3, 200)]);
    let ago = Duration::from_millis;
    scene.heard = BTreeMap::from([(1, ago(0)), (2, ago(20)), (3, ago(900))]);
    assert_eq!(scene.heirs(&voters), [2, 3], "equal logs: heard from last");
    scene.matched.insert(2, 150);
    assert_eq!(scene.heirs(&voters), [3, 2], "the longer log");
    scene.matched.insert(2, 99);
    assert_eq!(scene.heirs(&voters), [3], "too far behind");
    scene.heard.remove(&3);
    assert_eq!(scene.heirs(&voters), [0; 0], "not heard from lately");
}

#[test]
fn a_member_has_addresses_of_its_own() {
    let scene = three();
    assert!(matches!(scene.add(4, &peer(4)), Ok(Step::Change(_))));
    let raft = Peer {
        raft: peer(2).raft,
        ..peer(4)
    };
    let client = Peer {
        client: peer(3).client,
        ..peer(4)
    };
    for (taken, owner) in [(raft, 2), (client, 3)] {
        let refused = scene.add(4, &taken).err();
        assert!(
            refused.is_some_and(|Refusal(_, _, why)| why.contains(&format!("node {owner} is at"))),
            "{taken:?}"
        );
    }
}
