//! A ledger that is put back, and put back again: what it takes while it awaits its first command, and that no token comes
//! twice. Built from commands alone.

use billing_core::*;

const BORN_MS: u64 = 1_790_000_000_000;

fn apply(ledger: &mut Ledger, at_ms: u64, command: Command) -> Result<Reply, Rejection> {
    let stamp = Stamp {
        base: ClusterTime(0),
        elapsed_ms: ledger.now().0 + 1,
        wall: WallTime(BORN_MS + at_ms),
        wall_jumped_ms: 0,
    };
    let applied = ledger.apply(stamp, &[(Actor::ledger(), command)]);
    applied.results.into_iter().next().expect("one result")
}

fn acquire(request: u8) -> Command {
    Command::AcquireLease(AcquireLease {
        invoice: InvoiceId::new("inv-7").expect("short"),
        wait: WaitMs::new(0).expect("none"),
        requester: Requester::Implicit {
            request: RequestId::new([request; 16]),
            holder: HolderId::new("ana").expect("short"),
            ttl: TtlMs::new(1_000).expect("the shortest"),
        },
    })
}

fn token(reply: Result<Reply, Rejection>) -> FencingToken {
    match reply {
        Ok(Reply::Leased(leased)) => leased.lease.token,
        other => panic!("not leased: {other:?}"),
    }
}

/// A ledger whose longest TTL is the shortest there is, and its first token.
fn founded() -> (Ledger, FencingToken) {
    let mut ledger = Ledger::new(Config::default());
    let bootstrap = Bootstrap {
        ledger_id: LedgerId::new("L").expect("short"),
        no_prior_charges: true,
    };
    let within = BootstrapWithin {
        bootstrap,
        ttl_max: TtlMs::new(1_000).expect("the shortest"),
    };
    apply(&mut ledger, 0, Command::BootstrapWithin(within)).expect("bootstrapped");
    let first = token(apply(&mut ledger, 1, acquire(1)));
    (ledger, first)
}

fn restore() -> Command {
    Command::Restore(Restore {
        reason: Evidence::new("disks lost").expect("short"),
    })
}

/// Puts `backup` back at `at_ms` and lives until something is granted.
fn second_life(backup: &Ledger, at_ms: u64, request: u8) -> (Ledger, FencingToken) {
    let mut ledger = backup.clone();
    ledger.await_restore();
    apply(&mut ledger, at_ms, restore()).expect("restored");
    let mut waited = ledger.grants_in_ms();
    assert_eq!(waited, 1_000, "the longest TTL");
    while waited > 0 {
        apply(&mut ledger, at_ms + 1_000, Command::Tick).expect("time");
        waited = ledger.grants_in_ms();
    }
    let granted = token(apply(&mut ledger, at_ms + 1_000, acquire(request)));
    (ledger, granted)
}

#[test]
fn a_ledger_that_awaits_its_restore_takes_nothing_else() {
    let (mut ledger, first) = founded();
    ledger.await_restore();
    assert!(ledger.awaits_restore());
    let release = ReleaseLease::ByToken {
        invoice: InvoiceId::new("inv-7").expect("short"),
        token: first,
    };
    let allow = AllowCharges {
        evidence: Evidence::new("none").expect("short"),
    };
    for command in [
        acquire(3),
        Command::ReleaseLease(release),
        Command::AllowCharges(allow),
        Command::KeepAlive(KeepAlive {
            session: SessionId::new([1; 16]),
        }),
    ] {
        let told = apply(&mut ledger, 5, command.clone());
        assert_eq!(told, Err(Rejection::NotBootstrapped), "{command:?}");
    }
    assert_eq!(
        ledger
            .lease(&InvoiceId::new("inv-7").expect("short"))
            .map(|lease| lease.token),
        Some(first)
    );
    apply(&mut ledger, 6, restore()).expect("restored");
    assert!(!ledger.awaits_restore());
    assert_eq!(ledger.leases_count(), 0, "nobody holds anything");
    assert!(!ledger.charges_allowed());
}

#[test]
fn a_backup_that_is_put_back_twice_grants_no_token_twice() {
    let (backup, first) = founded();
    // At once, after a second, after an hour: the second life begins when the first one has granted something.
    for lost_after_ms in [10, 1_000, 3_600_000] {
        let (one, granted) = second_life(&backup, lost_after_ms, 2);
        assert!(granted > first);
        let (_, again) = second_life(&backup, lost_after_ms + 1_001, 2);
        assert!(
            again > granted,
            "lost after {lost_after_ms} ms: {again} came before as {granted}"
        );
        let (_, nested) = second_life(&one, lost_after_ms + 1_002, 3);
        assert!(nested > granted);
    }
}

#[test]
fn a_clock_that_went_back_takes_the_jump() {
    let (backup, first) = founded();
    let mut ledger = backup.clone();
    ledger.await_restore();
    let stamp = Stamp {
        base: ClusterTime(0),
        elapsed_ms: 1,
        wall: WallTime(1),
        wall_jumped_ms: 0,
    };
    let applied = ledger.apply(stamp, &[(Actor::ledger(), restore())]);
    assert!(applied.results[0].is_ok());
    assert_eq!(ledger.token_last().0, first.0 + limits::TOKEN_JUMP);
}
