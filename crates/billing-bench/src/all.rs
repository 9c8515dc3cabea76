//! Decides what `make bench` measures in one run: pairs, hand-offs and charges round by round on the same nodes, each round beside
//! what the disk does, and then the memory of held leases.

use anyhow::Result;

use crate::{Common, charges, disk, handoffs, held, pairs, place::Place, report::Report};

/// Every measurement's own choices at their defaults.
pub async fn run(common: &Common, held: &held::Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut pairs = pairs::Pairs::new(&crate::defaults()?);
    let mut handoffs = handoffs::Handoffs::new(&crate::defaults()?);
    let mut charges = charges::Charges::new(&crate::defaults()?);
    let mut syncs = Vec::new();
    for round in common.each_round() {
        syncs.push(disk::measure(place.folder(), common.length())?);
        pairs.round(&mut place, common.length()).await?;
        handoffs.round(&mut place, common.length()).await?;
        charges.round(&mut place, common.length()).await?;
        eprintln!("round {round} of {} done", common.rounds);
    }
    place.stop().await?;
    let disk = disk::SyncFigures::of(&syncs);
    let mut report = Report::default();
    disk.show(&mut report)?;
    report.section("pairs", pairs.report(common, &disk)?);
    report.section("handoffs", handoffs.report(common, &disk)?);
    report.section("charges", charges.report(common)?);
    report.section("held", held::run(common, held).await?);
    Ok(report)
}
