//! `billingctl doctor`: asks everybody, and prints what `doctor/` makes of the answers.

use super::Context;
use crate::{
    args::Format,
    doctor::examine,
    failure::{Exit, Problem, nobody_answers},
    survey::Survey,
};

pub async fn run(mut context: Context<'_, '_>) -> Result<Exit, Problem> {
    let survey = Survey::ask(&context.cluster, &context.env).await;
    if survey.best().is_none() {
        return Err(nobody_answers(context.cluster.endpoints(), &context.env).await);
    }
    let examined = examine(&survey);
    let mut printer = context.printer();
    match printer.format() {
        Format::Table => {
            printer.rows(&examined.rows())?;
            printer.below(&examined)?;
        }
        Format::Json => printer.one(&examined)?,
        Format::Jsonl => {
            let mut listing = printer.listing("checks");
            listing.page(&examined.checks)?;
            listing.end(false, "")?;
        }
        // Nothing to name is no line.
        Format::Name if examined.warnings + examined.failures == 0 => {}
        Format::Name => {
            let mut listing = printer.listing("checks");
            for check in examined
                .checks
                .iter()
                .filter(|check| check.level != crate::doctor::Level::Ok)
            {
                listing.page(std::slice::from_ref(check))?;
            }
            listing.end(false, "")?;
        }
    }
    Ok(if examined.failures == 0 {
        Exit::Done
    } else {
        Exit::Refused
    })
}
