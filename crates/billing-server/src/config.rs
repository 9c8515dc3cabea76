//! Decides which settings hold: flags over environment over file over default, each checked against its bound.
//! Starts nothing, opens no socket and no data folder; remembers where each value came from, for `check-config`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use billing_core::{LedgerId, TtlMs};
use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::Deserialize;

use crate::cli::{LogFormat, Settings};
use crate::join::Plan;

pub const NODES_MAX: usize = crate::node::bounds::VOTERS_MAX;
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// Longer, and a cluster without its leader would seem to be gone.
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(600);
pub const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(600);
pub const SNAPSHOT_EVERY_MIN: u64 = 100;
pub const WORKER_THREADS_MAX: u32 = 64;
pub const CALLS_MAX_MAX: u32 = 1_000_000;

const LISTEN_DEFAULT: &str = "127.0.0.1:7101";
const RAFT_LISTEN_DEFAULT: &str = "127.0.0.1:7201";

/// A member as others reach it: `ID=CLIENTS/NODES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: u64,
    /// Where clients reach it.
    pub client: String,
    /// Where the other nodes reach it.
    pub raft: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let shape = || {
            format!(
                "`{text}` is not of the form ID=CLIENTS/NODES, such as 2=127.0.0.1:7102/127.0.0.1:7202"
            )
        };
        let (id, addresses) = text.trim().split_once('=').ok_or_else(shape)?;
        let (client, raft) = addresses.split_once('/').ok_or_else(shape)?;
        let id = id.parse().map_err(|_| shape())?;
        if id == 0 {
            return Err(format!("`{text}`: node ids start at 1"));
        }
        Ok(Peer {
            id,
            client: host_and_port(client)?,
            raft: host_and_port(raft)?,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}/{}", self.id, self.client, self.raft)
    }
}

pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not HOST:PORT, such as 127.0.0.1:7101 or [::1]:7101");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

pub(crate) fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Flag,
    Environment,
    File,
    /// This node's own entry in `peers`.
    Peers,
    Default,
}

/// A new cluster's founding, said once on the command line; never in a file or the environment, which would say it again
/// at every start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// The operator's word that nothing was ever charged under this ledger id.
    pub no_prior_charges: bool,
    /// The longest TTL of the new ledger.
    pub ttl_max: TtlMs,
}

/// The settings that hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub node_id: u64,
    pub data_dir: PathBuf,
    pub listen: String,
    pub raft_listen: String,
    /// In order of id, this node among them.
    pub peers: Vec<Peer>,
    /// The cluster's name. Unset: whatever the folder says; at a lone node's bootstrap: one is drawn.
    pub ledger_id: Option<LedgerId>,
    pub bootstrap: Option<Bootstrap>,
    pub insecure: bool,
    pub heartbeat: Duration,
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    pub snapshot_every: u64,
    pub shutdown_grace: Duration,
    pub calls_max: u32,
    pub connections_max: u32,
    pub worker_threads: u32,
    pub log: String,
    pub log_format: LogFormat,
    sources: Vec<(&'static str, String, Source)>,
    file: Option<PathBuf>,
}

/// What is wrong with the settings, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {why}")]
    Unreadable { path: PathBuf, why: String },
    /// With the line, as the parser drew it.
    #[error("configuration file {path}: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{name} is missing: give --{flag}, {environment}, or `{name} = ...` in the file of --config"
    )]
    Missing {
        name: &'static str,
        flag: String,
        environment: String,
    },
    #[error("{name} ({source_}): {why}")]
    Wrong {
        name: &'static str,
        source_: String,
        why: String,
    },
}

/// The same settings in the file. Durations and peers are text, as on the command line.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node_id: Option<u64>,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    raft_listen: Option<String>,
    peers: Option<Vec<Text<Peer>>>,
    ledger_id: Option<Text<LedgerIdText>>,
    insecure: Option<bool>,
    heartbeat: Option<Text<Span>>,
    election_timeout_min: Option<Text<Span>>,
    election_timeout_max: Option<Text<Span>>,
    snapshot_every: Option<u64>,
    shutdown_grace: Option<Text<Span>>,
    calls_max: Option<u32>,
    connections_max: Option<u32>,
    worker_threads: Option<u32>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

/// A value that is read from a TOML string, so that a mistake is shown with its line.
#[derive(Debug)]
struct Text<T>(T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map(Text)
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Debug)]
struct Span(Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Span, String> {
        humantime::parse_duration(text)
            .map(Span)
            .map_err(|error| format!("{error}; such as \"250ms\", \"10s\", \"5m\""))
    }
}

#[derive(Debug)]
struct LedgerIdText(LedgerId);

impl FromStr for LedgerIdText {
    type Err = String;
    fn from_str(text: &str) -> Result<LedgerIdText, String> {
        LedgerId::new(text)
            .map(LedgerIdText)
            .map_err(|error| error.to_string())
    }
}

impl File {
    fn read(path: &Path) -> Result<File, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            why: error.to_string(),
        })
    }
}

/// Takes each value from the first place that names it and writes down which one that was.
struct Picker<'a> {
    matches: &'a ArgMatches,
    sources: Vec<(&'static str, String, Source)>,
}

impl Picker<'_> {
    fn pick<T>(
        &mut self,
        name: &'static str,
        said: Option<T>,
        file: Option<T>,
        fallback: (T, Source),
        show: impl Fn(&T) -> String,
    ) -> T {
        let (value, source) = match (said, file) {
            (Some(value), _) => (value, self.said_by(name)),
            (None, Some(value)) => (value, Source::File),
            (None, None) => fallback,
        };
        self.sources.push((name, show(&value), source));
        value
    }

    fn need<T>(
        &mut self,
        name: &'static str,
        said: Option<T>,
        file: Option<T>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, ConfigError> {
        let (value, source) = match (said, file) {
            (Some(value), _) => (value, self.said_by(name)),
            (None, Some(value)) => (value, Source::File),
            (None, None) => {
                return Err(ConfigError::Missing {
                    name,
                    flag: flag(name),
                    environment: environment(name),
                });
            }
        };
        self.sources.push((name, show(&value), source));
        Ok(value)
    }

    /// A value that may be nowhere.
    fn maybe<T>(
        &mut self,
        name: &'static str,
        said: Option<T>,
        file: Option<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let (value, source) = match (said, file) {
            (Some(value), _) => (value, self.said_by(name)),
            (None, file) => (file?, Source::File),
        };
        self.sources.push((name, show(&value), source));
        Some(value)
    }

    fn said_by(&self, name: &str) -> Source {
        match self.matches.value_source(name) {
            Some(ValueSource::EnvVariable) => Source::Environment,
            _ => Source::Flag,
        }
    }
}

fn flag(name: &str) -> String {
    name.replace('_', "-")
}

fn environment(name: &str) -> String {
    format!("BILLINGD_{}", name.to_uppercase())
}

fn text(value: &impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn span(value: &Duration) -> String {
    text(&humantime::format_duration(*value))
}

fn list(values: &[Peer]) -> String {
    let items: Vec<String> = values.iter().map(text).collect();
    format!("[{}]", items.join(", "))
}

fn ttl_max(said: Option<Duration>) -> Result<TtlMs, ConfigError> {
    let Some(said) = said else {
        return Ok(TtlMs::MAX);
    };
    let ms = u64::try_from(said.as_millis()).unwrap_or(u64::MAX);
    TtlMs::new(ms).map_err(|_| ConfigError::Wrong {
        name: "ttl_max",
        source_: "--ttl-max".into(),
        why: "1s to 5m".into(),
    })
}

impl Config {
    /// Puts the layers together and checks every bound. Reads the file of `--config`, nothing else.
    pub fn load(settings: Settings, matches: &ArgMatches) -> Result<Config, ConfigError> {
        let path = settings.config;
        let file = match &path {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let mut from = Picker {
            matches,
            sources: Vec::new(),
        };
        let number = |n: &u64| n.to_string();
        let count = |n: &u32| n.to_string();

        let node_id = from.need("node_id", settings.node_id, file.node_id, number)?;
        let data_dir = from.need("data_dir", settings.data_dir, file.data_dir, |path| {
            text(&path.display())
        })?;
        let file_peers = file
            .peers
            .map(|peers| peers.into_iter().map(|Text(peer)| peer).collect());
        let listed: Option<Vec<Peer>> = settings
            .peers
            .clone()
            .or_else(|| Option::clone(&file_peers));
        let own = listed
            .iter()
            .flatten()
            .find(|peer| peer.id == node_id)
            .cloned();
        let address = |own: Option<&String>, default: &str| match own {
            Some(address) => (address.clone(), Source::Peers),
            None => (default.to_owned(), Source::Default),
        };
        let listen = from.pick(
            "listen",
            settings.listen,
            file.listen,
            address(own.as_ref().map(|peer| &peer.client), LISTEN_DEFAULT),
            text,
        );
        let raft_listen = from.pick(
            "raft_listen",
            settings.raft_listen,
            file.raft_listen,
            address(own.as_ref().map(|peer| &peer.raft), RAFT_LISTEN_DEFAULT),
            text,
        );
        let alone = Peer {
            id: node_id,
            client: listen.clone(),
            raft: raft_listen.clone(),
        };
        let mut peers = from.pick(
            "peers",
            settings.peers,
            file_peers,
            (vec![alone], Source::Default),
            |peers| list(peers),
        );
        let ledger_id = from.maybe(
            "ledger_id",
            settings.ledger_id,
            file.ledger_id.map(|Text(LedgerIdText(id))| id),
            text,
        );
        peers.sort_by_key(|peer| peer.id);
        let insecure = from.pick(
            "insecure",
            settings.insecure.then_some(true),
            file.insecure,
            (false, Source::Default),
            |yes| yes.to_string(),
        );
        let mut time = |name, said, file: Option<Text<Span>>, default_ms| {
            from.pick(
                name,
                said,
                file.map(|Text(Span(value))| value),
                (Duration::from_millis(default_ms), Source::Default),
                span,
            )
        };
        let heartbeat = time("heartbeat", settings.heartbeat, file.heartbeat, 250);
        let election_timeout_min = time(
            "election_timeout_min",
            settings.election_timeout_min,
            file.election_timeout_min,
            1_000,
        );
        let election_timeout_max = time(
            "election_timeout_max",
            settings.election_timeout_max,
            file.election_timeout_max,
            1_300,
        );
        let shutdown_grace = time(
            "shutdown_grace",
            settings.shutdown_grace,
            file.shutdown_grace,
            10_000,
        );
        let snapshot_every = from.pick(
            "snapshot_every",
            settings.snapshot_every,
            file.snapshot_every,
            (20_000, Source::Default),
            number,
        );
        let calls_max = from.pick(
            "calls_max",
            settings.calls_max,
            file.calls_max,
            (8_192, Source::Default),
            count,
        );
        let connections_max = from.pick(
            "connections_max",
            settings.connections_max,
            file.connections_max,
            (4_096, Source::Default),
            count,
        );
        let worker_threads = from.pick(
            "worker_threads",
            settings.worker_threads,
            file.worker_threads,
            (1, Source::Default),
            count,
        );
        let log = from.pick(
            "log",
            settings.log,
            file.log,
            ("info".to_owned(), Source::Default),
            text,
        );
        let log_format = from.pick(
            "log_format",
            settings.log_format,
            file.log_format,
            (LogFormat::Text, Source::Default),
            |format| match format {
                LogFormat::Text => text(&"text"),
                LogFormat::Json => text(&"json"),
            },
        );
        let bootstrap = settings.bootstrap.then_some(Bootstrap {
            no_prior_charges: settings.no_prior_charges,
            ttl_max: ttl_max(settings.ttl_max)?,
        });
        let config = Config {
            node_id,
            data_dir,
            listen,
            raft_listen,
            peers,
            ledger_id,
            bootstrap,
            insecure,
            heartbeat,
            election_timeout_min,
            election_timeout_max,
            snapshot_every,
            shutdown_grace,
            calls_max,
            connections_max,
            worker_threads,
            log,
            log_format,
            sources: from.sources,
            file: path,
        };
        config.check()?;
        Ok(config)
    }

    /// What a node that joins wants to become.
    pub fn plan(&self, join: crate::cli::Joining) -> Result<Plan, ConfigError> {
        let wrong = |name, flag: &str, why: String| ConfigError::Wrong {
            name,
            source_: flag.to_owned(),
            why,
        };
        if self.bootstrap.is_some() {
            let why = "founds a new cluster; a node that joins another leaves it away".to_owned();
            return Err(wrong("bootstrap", "--bootstrap", why));
        }
        for address in &join.cluster {
            host_and_port(address).map_err(|why| wrong("cluster", "--cluster", why))?;
        }
        if join
            .replaces
            .is_some_and(|old| old == 0 || old == self.node_id)
        {
            let why = "is the id of another node, a voter of the cluster".to_owned();
            return Err(wrong("replaces", "--replaces", why));
        }
        Ok(Plan {
            cluster: join.cluster,
            replaces: join.replaces,
            voter: join.voter,
            allow_even: join.allow_even,
        })
    }

    /// Whether this node says itself where it listens, so that it needs no entry among the peers: the membership that is in
    /// force may have changed since the list was written.
    fn says_where_it_is(&self) -> bool {
        ["listen", "raft_listen"].iter().all(|wanted| {
            let found = self.sources.iter().find(|(name, ..)| name == wanted);
            found.is_some_and(|(_, _, source)| *source != Source::Default)
        })
    }

    /// This node's own entry among the peers. `check` has made sure that there is one.
    pub fn own(&self) -> Peer {
        let own = self.peers.iter().find(|peer| peer.id == self.node_id);
        own.cloned().unwrap_or_else(|| Peer {
            id: self.node_id,
            client: self.listen.clone(),
            raft: self.raft_listen.clone(),
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let within = |name, holds: bool, why: String| {
            if holds {
                Ok(())
            } else {
                Err(self.wrong(name, why))
            }
        };
        within("node_id", self.node_id > 0, "node ids start at 1".into())?;
        within(
            "data_dir",
            !self.data_dir.as_os_str().is_empty(),
            "is empty".into(),
        )?;
        for (name, address) in [("listen", &self.listen), ("raft_listen", &self.raft_listen)] {
            host_and_port(address).map_err(|why| self.wrong(name, why))?;
            billing_env::loopback_or_insecure(address, self.insecure)
                .map_err(|why| self.wrong(name, why))?;
        }
        within(
            "raft_listen",
            self.listen != self.raft_listen || port(&self.listen) == "0",
            format!(
                "{} is the address for clients; nodes need one of their own, such as port 7201",
                self.raft_listen
            ),
        )?;
        self.check_peers()?;
        within(
            "heartbeat",
            (HEARTBEAT_MIN..=HEARTBEAT_MAX).contains(&self.heartbeat),
            format!("{} to {}", span(&HEARTBEAT_MIN), span(&HEARTBEAT_MAX)),
        )?;
        within(
            "election_timeout_min",
            self.election_timeout_min >= 2 * self.heartbeat,
            "at least twice the heartbeat, or one late heartbeat costs an election".into(),
        )?;
        within(
            "election_timeout_max",
            self.election_timeout_max > self.election_timeout_min,
            "must be longer than election_timeout_min, or two candidates tie again and again"
                .into(),
        )?;
        within(
            "election_timeout_max",
            self.election_timeout_max <= ELECTION_TIMEOUT_MAX,
            format!("at most {}", span(&ELECTION_TIMEOUT_MAX)),
        )?;
        within(
            "shutdown_grace",
            self.shutdown_grace <= SHUTDOWN_GRACE_MAX,
            format!("at most {}", span(&SHUTDOWN_GRACE_MAX)),
        )?;
        within(
            "snapshot_every",
            self.snapshot_every >= SNAPSHOT_EVERY_MIN,
            format!("at least {SNAPSHOT_EVERY_MIN}"),
        )?;
        for (name, value, max) in [
            ("calls_max", self.calls_max, CALLS_MAX_MAX),
            ("connections_max", self.connections_max, CALLS_MAX_MAX),
            ("worker_threads", self.worker_threads, WORKER_THREADS_MAX),
        ] {
            within(name, (1..=max).contains(&value), format!("1 to {max}"))?;
        }
        crate::telemetry::filter(&self.log).map_err(|why| self.wrong("log", why))?;
        self.check_bootstrap()
    }

    fn check_peers(&self) -> Result<(), ConfigError> {
        let wrong = |why| Err(self.wrong("peers", why));
        if self.peers.len() > NODES_MAX {
            return wrong(format!("at most {NODES_MAX} nodes"));
        }
        for pair in self.peers.windows(2) {
            if pair[0].id == pair[1].id {
                return wrong(format!(
                    "node id {} stands there twice; every node has an id of its own",
                    pair[0].id
                ));
            }
        }
        let mut addresses: Vec<&String> = self
            .peers
            .iter()
            .flat_map(|peer| [&peer.client, &peer.raft])
            .filter(|address| port(address) != "0")
            .collect();
        addresses.sort();
        if let Some(pair) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong(format!("address {} stands there twice", pair[0]));
        }
        let Some(own) = self.peers.iter().find(|peer| peer.id == self.node_id) else {
            if self.bootstrap.is_none() && self.says_where_it_is() {
                return Ok(());
            }
            return wrong(format!(
                "this node, {}, is not among them; list every node, this one too",
                self.node_id
            ));
        };
        // Hosts may differ (0.0.0.0 is listened on, a name is told to others); another port is somebody else's entry.
        for (name, listened, told) in [
            ("listen", &self.listen, &own.client),
            ("raft_listen", &self.raft_listen, &own.raft),
        ] {
            if port(listened) != port(told) {
                return Err(self.wrong(
                    name,
                    format!(
                        "{listened} is not where the peers say that node {} is, {told}: correct one of them; \
                         if another node has this id, give this one its own",
                        self.node_id
                    ),
                ));
            }
        }
        if self.peers.len() > 1 && self.peers.iter().any(|p| port(&p.raft) == "0") {
            return wrong("port 0 is no place where another node could be found".into());
        }
        Ok(())
    }

    fn check_bootstrap(&self) -> Result<(), ConfigError> {
        if self.bootstrap.is_some() && self.ledger_id.is_none() && self.peers.len() > 1 {
            return Err(ConfigError::Wrong {
                name: "ledger_id",
                source_: "--ledger-id".into(),
                why: "a cluster of several nodes needs one name, the same at each of them: add --ledger-id NAME".into(),
            });
        }
        Ok(())
    }

    fn wrong(&self, name: &'static str, why: impl Into<String>) -> ConfigError {
        let source = self.sources.iter().find(|(known, ..)| *known == name);
        ConfigError::Wrong {
            name,
            source_: source.map_or_else(String::new, |(name, _, source)| self.told(name, source)),
            why: why.into(),
        }
    }

    fn told(&self, name: &str, source: &Source) -> String {
        match source {
            Source::Flag => format!("--{}", flag(name)),
            Source::Environment => environment(name),
            Source::File => match &self.file {
                Some(path) => format!("file {}", path.display()),
                None => "file".into(),
            },
            Source::Peers => "from peers".into(),
            Source::Default => "default".into(),
        }
    }

    /// The settings as a TOML file that would give the same ones, each line with its source.
    pub fn explain(&self) -> String {
        let mut lines: Vec<(String, String)> = self
            .sources
            .iter()
            .map(|(name, value, source)| (format!("{name} = {value}"), self.told(name, source)))
            .collect();
        if let Some(bootstrap) = &self.bootstrap {
            let prior = if bootstrap.no_prior_charges {
                "no prior charges"
            } else {
                "charges are refused until AllowCharges"
            };
            lines.push((
                "# founds a new cluster".into(),
                format!("--bootstrap, {prior}"),
            ));
        }
        let width = lines
            .iter()
            .map(|(line, _)| line.len())
            .max()
            .unwrap_or(0)
            .min(48);
        lines
            .into_iter()
            .map(|(line, source)| format!("{line:width$}  # {source}\n"))
            .collect()
    }
}
