//! Whose folder it is, and what a person is told when it is not.

mod common;

use std::fs;

use billing_store::{Identity, StoreError, create, inspect, open};
use bytes::Bytes;
use common::*;

fn told(outcome: Result<billing_store::Disk, StoreError>, expected: &str) {
    match outcome {
        Ok(_) => panic!("opened, expected: {expected}"),
        Err(error) => assert!(
            error.to_string().contains(expected),
            "{error}\nexpected: {expected}"
        ),
    }
}

#[tokio::test]
async fn a_folder_is_opened_by_its_own_node_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deep").join("down");
    assert_eq!(inspect(&path).expect("inspects"), None);
    told(open(&path, NODE, None), "holds no node");
    let disk = create(&path, &identity()).expect("creates");
    assert_eq!(disk.identity, identity());
    told(open(&path, NODE, None), "in use by another process");
    told(create(&path, &identity()), "in use by another process");
    drop(disk);
    told(create(&path, &identity()), "already holds node 7");
    told(open(&path, 8, None), "belongs to node 7, not to node 8");
    told(
        open(&path, NODE, Some(b"cluster-b")),
        "belongs to cluster cluster-a, not to cluster-b",
    );
    assert_eq!(inspect(&path).expect("inspects"), Some(identity()));
    assert_eq!(open(&path, NODE, None).expect("opens").identity, identity());
}

#[tokio::test]
async fn an_empty_folder_under_an_old_id_is_not_made_by_opening() {
    let folder = tempfile::tempdir().expect("a folder");
    told(open(folder.path(), NODE, None), "node ids are never reused");
    assert_eq!(
        fs::read_dir(folder.path()).expect("reads").count(),
        0,
        "opening leaves nothing"
    );
}

#[tokio::test]
async fn a_newer_format_is_refused_with_advice() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(create(&folder.path().join("n"), &identity()).expect("creates"));
    let path = folder.path().join("n").join("identity");
    let mut file = fs::read(&path).expect("reads");
    file[8..12].copy_from_slice(&9u32.to_le_bytes());
    let crc = crc32c::crc32c(&file[..12]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    // What follows may look like anything in a later format.
    file.truncate(16);
    fs::write(&path, file).expect("writes");
    told(
        open(&folder.path().join("n"), NODE, None),
        "made by a newer billingd, format 9, this one reads format 2: upgrade the binary",
    );
}

/// As the binary before the journal left it.
fn made_old(path: &std::path::Path) {
    fs::remove_file(path.join("journal")).expect("removes");
    let path = path.join("identity");
    let mut file = fs::read(&path).expect("reads");
    file[8..12].copy_from_slice(&1u32.to_le_bytes());
    let crc = crc32c::crc32c(&file[..12]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, file).expect("writes");
}

#[tokio::test]
async fn a_folder_without_a_journal_is_given_one_and_is_of_the_new_format_then() {
    let device = Device::sled();
    let disk = device.create().expect("creates");
    append(&*disk.log, entries(1..=30)).await.expect("durable");
    let vote = Bytes::from_static(b"vote");
    disk.log.save_vote(vote.clone()).await.expect("saves");
    disk.log.close().await.expect("closes");
    drop(disk);
    let path = device.node();
    made_old(&path);
    assert_eq!(inspect(&path).expect("inspects"), Some(identity()));
    let old = fs::read(path.join("identity")).expect("reads");
    // The second time as after a crash just before the identity was replaced, the third in the middle of the journal.
    let leftover = |what: &str| match what {
        "none" => {}
        "whole" => fs::write(path.join("identity"), &old).expect("writes"),
        _ => {
            fs::write(path.join("identity"), &old).expect("writes");
            fs::write(path.join("journal"), [7; 5000]).expect("writes");
            fs::write(path.join("identity.tmp"), b"half").expect("writes");
        }
    };
    let mut last = 30;
    for what in ["none", "whole", "half"] {
        leftover(what);
        let disk = device.open().expect("opens and upgrades");
        assert_eq!(disk.identity, identity());
        assert_eq!(disk.log.state().expect("state").vote, Some(vote.clone()));
        let read = disk.log.read(0..100).await.expect("reads");
        assert_eq!(read, entries(1..=last), "{what}");
        // Killed right afterwards: what is new lies in the new journal.
        last += 1;
        append(&*disk.log, entries(last..=last))
            .await
            .expect("durable");
        let killed = Device::sled();
        copy(&path, &killed.node());
        let found = killed.open().expect("opens").log.state().expect("state");
        assert_eq!(found.last, Some(last), "{what}");
        disk.log.close().await.expect("closes");
    }
    let format = fs::read(path.join("identity")).expect("reads")[8];
    assert_eq!(format, 2, "an older binary refuses it");
    // From now on its absence is damage, not age.
    fs::remove_file(path.join("journal")).expect("removes");
    told(device.open(), "journal is damaged: the file is missing");
}

#[tokio::test]
async fn what_a_crash_left_of_creating_is_cleared_and_strangers_are_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("n");
    drop(create(&path, &identity()).expect("creates"));
    // As after a crash just before the identity was renamed.
    fs::remove_file(path.join("identity")).expect("removes");
    fs::write(path.join("creating"), b"").expect("writes");
    told(open(&path, NODE, None), "holds no node");
    drop(create(&path, &identity()).expect("creates anew"));
    drop(open(&path, NODE, None).expect("opens"));
    // Without the mark it is no unfinished folder but one that lost its identity.
    fs::remove_file(path.join("identity")).expect("removes");
    told(open(&path, NODE, None), "damaged");
    told(create(&path, &identity()), "not empty");
    assert!(path.join("log").join("db").exists(), "nothing was removed");
    let stranger = folder.path().join("stranger");
    fs::create_dir(&stranger).expect("creates");
    fs::write(stranger.join("thesis.txt"), b"years of work").expect("writes");
    told(create(&stranger, &identity()), "thesis.txt");
    assert!(stranger.join("thesis.txt").exists());
}

#[tokio::test]
async fn a_crash_after_the_identity_was_written_leaves_a_whole_node() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(create(folder.path(), &identity()).expect("creates in an empty folder"));
    fs::write(folder.path().join("creating"), b"").expect("writes");
    drop(open(folder.path(), NODE, None).expect("opens"));
    assert!(!folder.path().join("creating").exists());
}

#[tokio::test]
async fn a_cluster_id_has_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    for cluster in [Bytes::new(), Bytes::from(vec![b'x'; 257])] {
        let identity = Identity {
            cluster,
            ..identity()
        };
        told(
            create(&folder.path().join("n"), &identity),
            "1 to 256 bytes",
        );
    }
}

#[tokio::test]
async fn leftovers_of_unfinished_snapshots_are_removed_and_damaged_ones_set_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = create(&folder.path().join("n"), &identity()).expect("creates");
    let mut writer = disk
        .snapshots
        .create(3, Bytes::from_static(b"m"))
        .await
        .expect("begins");
    writer
        .write(Bytes::from_static(b"body"))
        .await
        .expect("writes");
    let id = writer.finish(None).await.expect("finishes").id;
    drop(disk);
    let snapshots = folder.path().join("n").join("snapshots");
    fs::write(
        snapshots.join("00000000000000000009-0000000009.tmp"),
        b"half",
    )
    .expect("writes");
    fs::write(snapshots.join("00000000000000000008-0000000008.snap"), b"").expect("writes");
    let disk = open(&folder.path().join("n"), NODE, None).expect("opens");
    assert_eq!(disk.snapshots.latest().map(|info| info.id), Some(id));
    assert_eq!(disk.snapshots.damaged().len(), 1);
    let mut names: Vec<_> = fs::read_dir(&snapshots)
        .expect("reads")
        .map(|entry| {
            entry
                .expect("reads")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    assert_eq!(names, [format!("{id}.snap"), "damaged".to_owned()]);
}
