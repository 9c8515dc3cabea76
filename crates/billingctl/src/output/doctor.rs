//! Decides how the doctor's checks look: a line each, and below it what to do.

use super::{Card, Row};
use crate::doctor::{Check, Examined, Level};

impl Row for Check {
    const HEADERS: &'static [&'static str] = &["LEVEL", "CHECK", "SAID", "NEXT"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.level.word().to_owned(),
            self.check.to_owned(),
            self.said.clone(),
            self.next.clone(),
        ]
    }
    fn name(&self) -> String {
        self.check.to_owned()
    }
}

impl Examined {
    /// Three columns; what to do stands below what was found.
    pub fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = Vec::new();
        for Check {
            check,
            level,
            said,
            next,
        } in &self.checks
        {
            rows.push([level.word().to_owned(), (*check).to_owned(), said.clone()]);
            if !next.is_empty() {
                rows.push([String::new(), String::new(), format!("next: {next}")]);
            }
        }
        rows
    }

    fn summary(&self) -> String {
        let Examined {
            checks: _,
            ok,
            warnings,
            failures,
        } = self;
        format!("{ok} ok, {warnings} WARN, {failures} FAIL")
    }
}

impl Card for Examined {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![("checks", self.summary())]
    }
    /// The checks that are not ok.
    fn name(&self) -> String {
        let wrong = self.checks.iter().filter(|check| check.level != Level::Ok);
        wrong
            .map(|check| check.check)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
