//! Decides what a process has used: CPU from the kernel's books, resident memory. For any process of ours, and for ourselves.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// What utime and stime count in: USER_HZ is 100 on every Linux that we run on.
const TICK: Duration = Duration::from_millis(10);

/// CPU that process `pid` has used so far, user and system. In steps of 10 ms.
pub fn used(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks(&text)
        .map(|ticks| TICK * ticks)
        .with_context(|| format!("{path} does not read as a process's books"))
}

/// utime and stime: the 14th and 15th field. The 2nd, the name, is in parentheses and may hold anything, spaces too.
fn ticks(stat: &str) -> Option<u32> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let utime: u32 = fields.next()?.parse().ok()?;
    let stime: u32 = fields.next()?.parse().ok()?;
    utime.checked_add(stime)
}

/// CPU that this very process has used so far, all its threads.
pub fn used_by_us() -> Result<Duration> {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Duration::new(
        u64::try_from(spent.tv_sec)?,
        u32::try_from(spent.tv_nsec)?,
    ))
}

/// Resident memory of process `pid`, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kb| kb.parse::<u64>().ok())
        .map(|kb| kb * 1024)
        .with_context(|| format!("{path} names no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 10 0 0 0 123 45 0 0 20 0 1 0 99";
        assert_eq!(ticks(stat), Some(168));
        assert_eq!(ticks("77 (short) S 1"), None);
    }

    #[test]
    fn our_own_books_can_be_read() -> Result<()> {
        assert!(used_by_us()? > Duration::ZERO);
        assert!(resident(std::process::id())? > 0);
        used(std::process::id())?;
        Ok(())
    }
}
