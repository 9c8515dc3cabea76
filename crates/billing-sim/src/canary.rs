//! Decides whether the alarms ring: each rule that can be broken on purpose is broken, and a named property must notice, under
//! a recorded seed. Where none is recorded yet, it searches for one.

#[cfg(feature = "sabotage")]
use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};

#[cfg(feature = "sabotage")]
use anyhow::Context;
#[cfg(feature = "sabotage")]
use billing_core::sabotage::Sabotage;
#[cfg(feature = "sabotage")]
use billing_sim::scenarios;

#[cfg(feature = "sabotage")]
use crate::sweep::{Job, cores, run_all};

#[derive(clap::Args)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code))]
pub struct Canary {
    /// Where the recorded seeds are, line by line: RULE SCENARIO SEED PROPERTY, and `alone` where no other property is asked.
    #[arg(long, default_value = "tests/canaries.txt", value_name = "FILE")]
    file: PathBuf,
    /// Search for seeds that notice, this many for each scenario, and print lines for the file. 0: only what is recorded.
    #[arg(long, default_value_t = 0)]
    search: u64,
    /// Only rules for which a seed is recorded; the others are listed, and do not count.
    #[arg(long)]
    recorded: bool,
    /// Only this rule.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// Search in this scenario only.
    #[arg(long, value_name = "SCENARIO")]
    scenario: Option<String>,
    /// Search with no other property asked.
    #[arg(long, value_name = "PROPERTY")]
    only: Option<String>,
}

#[cfg(not(feature = "sabotage"))]
const NOT_BUILT: &str = "this binary can break no rule: build it with `make sim-canary`, which adds --features sabotage in a target folder of its own";

/// Breaks the rule in this process, for good.
#[cfg(not(feature = "sabotage"))]
pub fn break_rule(_rule: &str) -> Result<()> {
    bail!(NOT_BUILT)
}

#[cfg(feature = "sabotage")]
pub fn break_rule(rule: &str) -> Result<()> {
    let sabotage: Sabotage = rule.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    billing_core::sabotage::switch_on(sabotage);
    Ok(())
}

impl Canary {
    #[cfg(not(feature = "sabotage"))]
    pub fn run(&self) -> Result<bool> {
        bail!(NOT_BUILT)
    }

    /// True: every rule that was broken was noticed, by the property that is recorded.
    #[cfg(feature = "sabotage")]
    pub fn run(&self) -> Result<bool> {
        let recorded = self.recorded()?;
        let mut missed = 0;
        for &sabotage in Sabotage::ALL {
            let rule = sabotage.name();
            if self.rule.as_deref().is_some_and(|only| only != rule) {
                continue;
            }
            let caught = match recorded.get(rule) {
                Some(all) => all.iter().try_fold(true, |caught, known| {
                    anyhow::Ok(Self::again(rule, known)? && caught)
                })?,
                None if self.search > 0 => self.search(rule)?,
                None => {
                    let word = if self.recorded { "-     " } else { "MISSED" };
                    println!(
                        "{rule:<34} {word}  no seed is recorded in {}",
                        self.file.display()
                    );
                    self.recorded
                }
            };
            missed += usize::from(!caught);
        }
        if missed > 0 {
            println!("{missed} MISSED");
        }
        Ok(missed == 0)
    }

    #[cfg(feature = "sabotage")]
    fn recorded(&self) -> Result<BTreeMap<String, Vec<Recorded>>> {
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut recorded: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let words = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = words.split_whitespace().collect();
            let wrong = || {
                format!(
                    "{} line {}: not RULE SCENARIO SEED PROPERTY [alone]",
                    self.file.display(),
                    number + 1
                )
            };
            match words[..] {
                [] => {}
                [rule, scenario, seed, property] | [rule, scenario, seed, property, "alone"] => {
                    let seed = seed.parse().with_context(wrong)?;
                    let known = Recorded {
                        scenario: scenario.to_owned(),
                        seed,
                        property: property.to_owned(),
                        alone: words.len() == 5,
                    };
                    recorded.entry(rule.to_owned()).or_default().push(known);
                }
                _ => bail!(wrong()),
            }
        }
        Ok(recorded)
    }

    /// The recorded seed, without the sabotage and with it.
    #[cfg(feature = "sabotage")]
    fn again(rule: &'static str, known: &Recorded) -> Result<bool> {
        let job = |sabotage| Job {
            scenario: known.scenario.clone(),
            seed: known.seed,
            sabotage,
            only: known.alone.then(|| known.property.clone()),
            trace: None,
        };
        let (mut whole, mut noticed) = (false, None);
        run_all([job(None), job(Some(rule))], cores(), |end| {
            if end.job.sabotage.is_none() {
                whole = end.held;
            } else {
                noticed = end.broken().map(str::to_owned);
            }
            Ok(true)
        })?;
        let caught = whole && noticed.as_deref() == Some(&known.property);
        let verdict = if caught { "caught" } else { "MISSED" };
        let noticed = noticed.unwrap_or_else(|| "nothing".to_owned());
        let unbroken = if whole {
            ""
        } else {
            " and without the sabotage it fails too"
        };
        println!(
            "{rule:<34} {verdict}  property={noticed} scenario={} seed={} seeds=1{}{unbroken}",
            known.scenario,
            known.seed,
            if known.alone { " alone" } else { "" },
        );
        Ok(caught)
    }

    /// Seeds from 1 on, in every scenario, until one notices.
    #[cfg(feature = "sabotage")]
    fn search(&self, rule: &'static str) -> Result<bool> {
        let mut tried = 0;
        let mut found: Option<(String, u64, String)> = None;
        let scenarios: Vec<&str> = scenarios::ALL
            .iter()
            .map(|scenario| scenario.name)
            .filter(|name| self.scenario.as_deref().is_none_or(|only| only == *name))
            .collect();
        let jobs = (1..=self.search).flat_map(|seed| {
            scenarios.iter().map(move |scenario| Job {
                scenario: (*scenario).to_owned(),
                seed,
                sabotage: Some(rule),
                only: self.only.clone(),
                trace: None,
            })
        });
        run_all(jobs, cores(), |end| {
            tried += 1;
            if let (None, Some(property)) = (&found, end.broken()) {
                let job = &end.job;
                found = Some((job.scenario.clone(), job.seed, property.to_owned()));
            }
            Ok(found.is_none())
        })?;
        match &found {
            Some((scenario, seed, property)) => {
                let alone = if self.only.is_some() { " alone" } else { "" };
                println!("{rule} {scenario} {seed} {property}{alone} # runs until then: {tried}");
            }
            None => println!("# {rule} MISSED in {tried} runs"),
        }
        Ok(found.is_some())
    }
}

#[cfg(feature = "sabotage")]
struct Recorded {
    scenario: String,
    seed: u64,
    property: String,
    alone: bool,
}
