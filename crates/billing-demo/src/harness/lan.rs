//! Decides how nodes come to live on machines of their own, whose cables can be pulled: a network namespace for us with a
//! bridge in it, and one for each node, tied to the bridge by a veth pair. A pulled cable loses packets in silence.
//!
//! Touches no network that it did not make. Nothing has to be removed: a namespace without a name goes with the last process in
//! it, with every link in it, and no process here outlives us, however we end.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Home, Output, Process};

const BRIDGE: &str = "lan0";
/// Ours; the nodes' follow. Meant for benchmarks, and seen by nobody.
const NETWORK: &str = "198.18.0.";
const OURS: &str = "198.18.0.254";
const MADE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const NEEDED: &str = "cutting a link needs network namespaces of our own: root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and the \
     tools ip, unshare and nsenter. Run as root, or leave it out: --kind kill,stop";

/// A switch and the machines on it. Dropped: all gone, except that this thread stays in the network it moved to.
pub struct Lan {
    machines: Vec<Process>,
}

impl Lan {
    /// Moves this thread, and what it starts from now on, into a network of its own with `machines` others on it.
    pub fn plug_in(machines: usize) -> Result<Lan> {
        leave_network().context(NEEDED)?;
        ip("link set lo up").context(NEEDED)?;
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add {OURS}/24 dev {BRIDGE}"))?;
        ip(&format!("link set {BRIDGE} up"))?;
        let mut lan = Lan {
            machines: Vec::new(),
        };
        for number in 1..=machines {
            lan.add(number)?;
        }
        Ok(lan)
    }

    fn add(&mut self, number: usize) -> Result<()> {
        // It does nothing but keep the namespace.
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let machine = Process::start(format!("machine {number}"), command, &Output::Discard)?;
        let pid = machine.pid();
        self.machines.push(machine);
        let ours = fs::read_link("/proc/thread-self/ns/net")?;
        let since = Instant::now();
        while fs::read_link(network_of(pid)).context(NEEDED)? == ours {
            ensure!(since.elapsed() < MADE_WITHIN, NEEDED);
            std::thread::sleep(LOOK_AGAIN);
        }
        let port = port(number);
        ip(&format!(
            "link add {port} type veth peer name eth0 netns {pid}"
        ))?;
        ip(&format!("link set {port} up"))?;
        self.inside(number, "link set lo up")?;
        self.inside(number, &format!("addr add {NETWORK}{number}/24 dev eth0"))?;
        self.inside(number, "link set eth0 up")?;
        self.plug(number)
    }

    fn inside(&self, number: usize, arguments: &str) -> Result<()> {
        let mut command = self.enter(number);
        command.push("ip".to_owned());
        command.extend(arguments.split(' ').map(str::to_owned));
        run(&command)
    }

    fn enter(&self, number: usize) -> Vec<String> {
        let network = network_of(self.machines[number - 1].pid());
        vec![
            "nsenter".to_owned(),
            format!("--net={}", network.display()),
            "--".to_owned(),
        ]
    }

    /// Where nodes live, in order of their ids.
    pub fn homes(&self) -> Vec<Home> {
        (1..=self.machines.len())
            .map(|number| Home {
                host: host(number),
                enter: self.enter(number),
                disk: None,
            })
            .collect()
    }

    /// Machine `number` hears nothing from `from` any more, be it another machine or (zero) ours; it still speaks.
    pub fn deafen(&self, number: usize, from: usize) -> Result<()> {
        let host = match from {
            0 => OURS.to_owned(),
            other => host(other),
        };
        self.filter(number, "add table inet deaf")?;
        self.filter(
            number,
            "add chain inet deaf in { type filter hook input priority 0; }",
        )?;
        self.filter(
            number,
            &format!("add rule inet deaf in ip saddr {host} drop"),
        )
    }

    /// Machine `number` hears everybody again.
    pub fn hear(&self, number: usize) -> Result<()> {
        self.filter(number, "delete table inet deaf")
    }

    fn filter(&self, number: usize, rule: &str) -> Result<()> {
        let mut command = self.enter(number);
        command.extend(["nft".to_owned(), rule.to_owned()]);
        run(&command)
    }

    /// Its packets, and those for it, are lost from now on. Neither side is told: the link stays up.
    pub fn unplug(&self, number: usize) -> Result<()> {
        ip(&format!("link set {} nomaster", port(number)))
    }

    pub fn plug(&self, number: usize) -> Result<()> {
        ip(&format!("link set {} master {BRIDGE}", port(number)))
    }
}

fn host(number: usize) -> String {
    format!("{NETWORK}{number}")
}

fn port(number: usize) -> String {
    format!("port{number}")
}

fn network_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

fn ip(arguments: &str) -> Result<()> {
    let words = std::iter::once("ip").chain(arguments.split(' '));
    run(&words.map(str::to_owned).collect::<Vec<_>>())
}

fn run(words: &[String]) -> Result<()> {
    let line = words.join(" ");
    let (program, arguments) = words.split_first().context("nothing to run")?;
    let ran = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {line}"))?;
    if !ran.status.success() {
        bail!(
            "{line}: {}",
            String::from_utf8_lossy(&ran.stderr).trim().to_owned()
        );
    }
    Ok(())
}

#[allow(unsafe_code)]
fn leave_network() -> Result<()> {
    // SAFETY: the flag concerns this thread's view of the network and nothing else; no memory and no file is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Ok(())
}
