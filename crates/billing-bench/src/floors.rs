//! Decides whether a figure reaches its floor, and when not, what this machine would have allowed: the disk's durable appends beside
//! it, or the CPU that one costs. The floors are those of a machine with two cores.

use std::fmt;

use serde::Serialize;

use crate::report::number;

pub const UNARY: Floor = Floor {
    what: "unary pairs/s",
    floor: 12_000.0,
    aim: 24_000.0,
};
pub const PIPELINE: Floor = Floor {
    what: "Pipeline pairs/s",
    floor: 60_000.0,
    aim: 240_000.0,
};
pub const HANDOFFS: Floor = Floor {
    what: "hand-offs/s",
    floor: 1_000.0,
    aim: 2_000.0,
};
pub const LONE: Floor = Floor {
    what: "pairs/s of a lone caller",
    floor: 800.0,
    aim: 1_800.0,
};

/// What a figure should reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Floor {
    what: &'static str,
    floor: f64,
    aim: f64,
}

/// What bounds it.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    pub cores: f64,
    /// Durable appends per second by each of three writers at once.
    pub appends: f64,
    /// Durable appends that one thing needs one after the other.
    pub in_sequence: f64,
    /// Things under way at once; those share an append.
    pub at_once: f64,
    /// CPU of one thing, both sides, in microseconds.
    pub cpu_us: f64,
}

/// Whether it was reached.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    #[serde(flatten)]
    floor: Floor,
    measured: f64,
    met: bool,
    /// What the disk alone would allow.
    disk_allows: f64,
    /// What the cores would allow at this much CPU for each.
    cpu_allows: f64,
}

impl Floor {
    pub fn judge(self, measured: f64, means: Means) -> Verdict {
        Verdict {
            floor: self,
            measured,
            met: measured >= self.floor,
            disk_allows: means.appends * means.at_once / means.in_sequence,
            cpu_allows: means.cores * 1e6 / means.cpu_us.max(f64::MIN_POSITIVE),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict {
            floor,
            measured,
            met,
            disk_allows,
            cpu_allows,
        } = self;
        write!(
            f,
            "{}: {}, floor {} ",
            floor.what,
            number(*measured),
            number(floor.floor)
        )?;
        if *met {
            return write!(f, "met (aim {})", number(floor.aim));
        }
        f.write_str("not met, because ")?;
        if *disk_allows < floor.floor {
            write!(
                f,
                "the disk's durable appends allow {} at most",
                number(*disk_allows)
            )
        } else if *cpu_allows < floor.floor {
            write!(
                f,
                "at this much CPU for each the cores allow {} at most (the disk: {})",
                number(*cpu_allows),
                number(*disk_allows)
            )
        } else {
            write!(
                f,
                "of waiting: the disk would allow {}, the CPU {}",
                number(*disk_allows),
                number(*cpu_allows)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANS: Means = Means {
        cores: 2.0,
        appends: 2_000.0,
        in_sequence: 2.0,
        at_once: 1.0,
        cpu_us: 500.0,
    };

    #[test]
    fn the_verdict_names_what_stands_in_the_way() {
        let say = |measured, means| LONE.judge(measured, means).to_string();
        assert_eq!(
            say(900.0, MEANS),
            "pairs/s of a lone caller: 900, floor 800 met (aim 1,800)"
        );
        let slow_disk = Means {
            appends: 1_000.0,
            ..MEANS
        };
        assert!(say(400.0, slow_disk).ends_with("the disk's durable appends allow 500 at most"));
        let dear = Means {
            cpu_us: 4_000.0,
            ..MEANS
        };
        assert!(say(400.0, dear).contains("the cores allow 500 at most"));
        assert!(say(400.0, MEANS).contains("of waiting"));
    }
}
