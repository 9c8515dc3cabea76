//! `billingctl invoice ...`, but for reading files, which is `submit.rs`.

use billing_core::{CustomerId, InvoiceId, currency::Currency};
use billing_proto::v1;

use super::{Context, cut, page_size, submit};
use crate::{
    args::{Generate, Invoice as Verb, Status},
    failure::{Exit, Problem},
    invoices::{Plan, due_at, write_csv},
    output::{
        Printer,
        json::{AuditRecord, InvoiceState, NowStatus, status},
    },
};

pub async fn run(mut context: Context<'_, '_>, verb: Verb) -> Result<Exit, Problem> {
    match verb {
        Verb::Submit { file, dry_run } => submit::file(context, &file, dry_run).await,
        Verb::Generate(generate) => self::generate(context, generate).await,
        Verb::Get { invoice_id, read } => {
            let answer = context.cluster.get_invoice(&invoice_id, read.stale).await?;
            context.printer().one(&InvoiceState::from(answer))?;
            Ok(Exit::Done)
        }
        Verb::List {
            status,
            customer,
            limit,
            read,
        } => {
            let filter = Filter {
                statuses: vec![status.map_or(v1::InvoiceStatus::Unspecified, Status::number)],
                customer_id: customer.unwrap_or_default(),
                limit: limit.limit,
                stale_ok: read.stale,
            };
            list(context, filter, |state| state, "no such invoice.").await
        }
        Verb::History { invoice_id, read } => {
            let records = context
                .cluster
                .get_invoice_history(&invoice_id, read.stale)
                .await?;
            let rows: Vec<AuditRecord> = records.into_iter().map(AuditRecord::from).collect();
            let mut printer = context.printer();
            let mut listing = printer.listing("records");
            listing.page(&rows)?;
            listing.end(
                false,
                "nothing is recorded, or it is older than the audit log reaches.",
            )?;
            Ok(Exit::Done)
        }
        Verb::Cancel { invoice_id, reason } => {
            let number = context
                .cluster
                .cancel_invoice(&invoice_id, &reason.reason)
                .await?;
            context.printer().one(&NowStatus {
                invoice_id,
                status: status(number),
            })?;
            Ok(Exit::Done)
        }
        Verb::Requeue { invoice_id, reason } => {
            let number = context
                .cluster
                .requeue_invoice(&invoice_id, &reason.reason)
                .await?;
            context.printer().one(&NowStatus {
                invoice_id,
                status: status(number),
            })?;
            Ok(Exit::Done)
        }
    }
}

/// Which invoices to list.
pub struct Filter {
    /// One after the other; UNSPECIFIED alone means all.
    pub statuses: Vec<v1::InvoiceStatus>,
    pub customer_id: String,
    /// 0: all.
    pub limit: u64,
    pub stale_ok: bool,
}

/// Lists invoices as rows of whatever kind the caller makes of them.
pub async fn list<R: crate::output::Row>(
    mut context: Context<'_, '_>,
    filter: Filter,
    row: impl Fn(InvoiceState) -> R,
    empty: &str,
) -> Result<Exit, Problem> {
    let Filter {
        statuses,
        customer_id,
        limit,
        stale_ok,
    } = filter;
    let Context {
        cluster,
        cli,
        streams,
        ..
    } = &mut context;
    let mut printer = Printer::new(streams.stdout, cli.output, streams.stdout_columns);
    let mut listing = printer.listing::<R>("invoices");
    let mut more = false;
    'statuses: for status in statuses {
        let mut page_token = String::new();
        loop {
            let page_size = page_size(limit, listing.rows());
            if page_size == 0 {
                more = true;
                break 'statuses;
            }
            let request = v1::ListInvoicesRequest {
                status: status.into(),
                customer_id: customer_id.clone(),
                page_size,
                page_token,
                stale_ok,
            };
            let page = cluster.list_invoices(request).await?;
            let rows: Vec<R> = page
                .invoices
                .into_iter()
                .map(InvoiceState::from)
                .map(&row)
                .collect();
            listing.page(&rows)?;
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    listing.end(more, empty)?;
    if more {
        context.say(&cut(limit));
    }
    Ok(Exit::Done)
}

async fn generate(context: Context<'_, '_>, asked: Generate) -> Result<Exit, Problem> {
    let Generate {
        count,
        seed,
        prefix,
        customers,
        currency,
        due,
        submit,
    } = asked;
    let bound = |bound: &dyn std::fmt::Display| {
        Problem::refused(bound.to_string(), "see billingctl invoice generate --help")
    };
    let currency = Currency::new(&currency)
        .map_err(|out| bound(&out))?
        .as_str()
        .to_owned();
    let due_at = due
        .as_deref()
        .map(due_at)
        .transpose()
        .map_err(|out| bound(&out))?;
    let plan = Plan {
        count,
        seed,
        prefix,
        customers,
        currency,
        due_at,
    };
    // The last one is the longest: if its ids are within bounds, all are.
    if let Some(last) = plan.last() {
        InvoiceId::new(&last.invoice_id).map_err(|out| bound(&out))?;
        CustomerId::new(&last.customer_id).map_err(|out| bound(&out))?;
    }
    if submit {
        return submit::generated(context, &plan).await;
    }
    let streams = context.streams;
    write_csv(streams.stdout, plan.invoices())?;
    Ok(Exit::Done)
}

impl Status {
    fn number(self) -> v1::InvoiceStatus {
        match self {
            Status::Pending => v1::InvoiceStatus::Pending,
            Status::Processing => v1::InvoiceStatus::Processing,
            Status::Charging => v1::InvoiceStatus::Charging,
            Status::InDoubt => v1::InvoiceStatus::InDoubt,
            Status::Waiting => v1::InvoiceStatus::Waiting,
            Status::Paid => v1::InvoiceStatus::Paid,
            Status::Failed => v1::InvoiceStatus::Failed,
            Status::Review => v1::InvoiceStatus::Review,
            Status::Cancelled => v1::InvoiceStatus::Cancelled,
        }
    }
}
