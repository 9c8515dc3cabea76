//! `billingctl charge ...`: what a person should know of, and a person's word on it.

use billing_proto::v1::{InvoiceStatus, resolve_charge_request as resolve};

use super::{
    Context,
    invoice::{Filter, list},
};
use crate::{
    args::Charge as Verb,
    failure::{Exit, Problem},
    output::json::{ChargeState, NowStatus, status},
};

pub async fn run(mut context: Context<'_, '_>, verb: Verb) -> Result<Exit, Problem> {
    match verb {
        Verb::List {
            in_doubt,
            review,
            waiting,
            limit,
            read,
        } => {
            let all = !(in_doubt || review || waiting);
            let wanted = [
                (in_doubt || all, InvoiceStatus::InDoubt),
                (review || all, InvoiceStatus::Review),
                (waiting || all, InvoiceStatus::Waiting),
                (all, InvoiceStatus::Charging),
            ];
            let filter = Filter {
                statuses: wanted
                    .into_iter()
                    .filter(|(wanted, _)| *wanted)
                    .map(|(_, status)| status)
                    .collect(),
                customer_id: String::new(),
                limit: limit.limit,
                stale_ok: read.stale,
            };
            list(context, filter, ChargeState, "no such charge.").await
        }
        Verb::Resolve {
            invoice_id,
            key,
            charged,
            not_charged: _,
            amount,
            currency,
            evidence,
        } => {
            // The grammar sees to it that exactly one of the two words was given.
            let charged = charged.map(|reference| resolve::Charged {
                reference,
                amount_minor: amount.unwrap_or_default(),
                currency: currency.unwrap_or_default(),
            });
            let number = context
                .cluster
                .resolve_charge(&invoice_id, &key, charged, &evidence)
                .await?;
            context.printer().one(&NowStatus {
                invoice_id,
                status: status(number),
            })?;
            Ok(Exit::Done)
        }
    }
}
