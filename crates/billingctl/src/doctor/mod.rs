//! Decides what in the answers of the nodes a person should see to, how badly, and what to do about it: one [`Check`] per
//! question, each a pure function of the answers. Asks nobody and changes nothing.

mod ledger;
mod nodes;

use serde::Serialize;

use crate::survey::Survey;

/// How a check ended, in order of how much it hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    #[serde(rename = "ok")]
    Ok,
    /// It works; it would be better otherwise.
    #[serde(rename = "WARN")]
    Warn,
    /// Somebody has to do something.
    #[serde(rename = "FAIL")]
    Fail,
}

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        }
    }
}

/// One question and its answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its stable name.
    pub check: &'static str,
    pub level: Level,
    pub said: String,
    /// What to do. Empty: nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next: String,
}

impl Check {
    fn ok(check: &'static str, said: impl Into<String>) -> Check {
        Check {
            check,
            level: Level::Ok,
            said: said.into(),
            next: String::new(),
        }
    }

    fn warn(check: &'static str, said: impl Into<String>, next: impl Into<String>) -> Check {
        Check {
            check,
            level: Level::Warn,
            said: said.into(),
            next: next.into(),
        }
    }

    fn fail(check: &'static str, said: impl Into<String>, next: impl Into<String>) -> Check {
        Check {
            level: Level::Fail,
            ..Check::warn(check, said, next)
        }
    }

    /// Several findings of one question in one line, as bad as the worst; none of them: `ok`.
    fn worst(check: &'static str, found: Vec<Finding>, ok: impl FnOnce() -> String) -> Check {
        let Some(level) = found.iter().map(|finding| finding.level).max() else {
            return Check::ok(check, ok());
        };
        let said: Vec<_> = found.iter().map(|finding| finding.said.as_str()).collect();
        let mut next: Vec<&str> = Vec::new();
        for finding in &found {
            if !finding.next.is_empty() && !next.contains(&finding.next.as_str()) {
                next.push(&finding.next);
            }
        }
        Check {
            check,
            level,
            said: said.join("; "),
            next: next.join("; "),
        }
    }
}

/// Part of a check's answer.
struct Finding {
    level: Level,
    said: String,
    next: String,
}

impl Finding {
    fn warn(said: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding {
            level: Level::Warn,
            said: said.into(),
            next: next.into(),
        }
    }

    fn fail(said: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding {
            level: Level::Fail,
            ..Finding::warn(said, next)
        }
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct Examined {
    pub checks: Vec<Check>,
    pub ok: u64,
    pub warnings: u64,
    pub failures: u64,
}

/// Of a survey in which at least one node answered.
pub fn examine(survey: &Survey) -> Examined {
    let mut checks = nodes::checks(survey);
    checks.extend(ledger::checks(survey));
    let count = |level| checks.iter().filter(|check| check.level == level).count() as u64;
    Examined {
        ok: count(Level::Ok),
        warnings: count(Level::Warn),
        failures: count(Level::Fail),
        checks,
    }
}

/// `1 node`, `3 nodes`.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// `node 4`, `nodes 1, 2 and 4`.
fn nodes_listed(ids: &[u64]) -> String {
    match ids {
        [] => "no node".to_owned(),
        [one] => format!("node {one}"),
        [most @ .., last] => {
            let most: Vec<_> = most.iter().map(u64::to_string).collect();
            format!("nodes {} and {last}", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_as_bad_as_its_worst_finding_and_says_what_to_do_once() {
        let found = vec![
            Finding::warn("node 1 is slow", "buy a disk"),
            Finding::fail("node 2 is slower", "buy a disk"),
        ];
        let check = Check::worst("disk", found, || unreachable!("something was found"));
        assert_eq!(
            check,
            Check::fail("disk", "node 1 is slow; node 2 is slower", "buy a disk")
        );
        let fine = Check::worst("disk", Vec::new(), || "fast".to_owned());
        assert_eq!(fine, Check::ok("disk", "fast"));
    }

    #[test]
    fn ids_are_listed_as_people_list_them() {
        assert_eq!(nodes_listed(&[4]), "node 4");
        assert_eq!(nodes_listed(&[1, 2, 4]), "nodes 1, 2 and 4");
    }
}
