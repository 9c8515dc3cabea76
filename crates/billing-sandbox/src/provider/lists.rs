//! Decides what a look at the provider shows: pages of objects, a search, and the books. Changes nothing.

use std::collections::{BTreeMap, HashMap};

use billing_env::MonoTime;
use http::StatusCode;
use serde_json::{Value, json};

use super::{NO_INVOICE, Provider};
use crate::error::ApiError;
use crate::objects::{Charge, ChargeStatus, Intent, Metadata};

/// Which objects of a kind, oldest first: all, or those at some positions.
enum Selection<'a> {
    All(usize),
    Some(&'a [usize]),
}

impl Selection<'_> {
    fn len(&self) -> usize {
        match self {
            Selection::All(count) => *count,
            Selection::Some(positions) => positions.len(),
        }
    }

    fn get(&self, rank: usize) -> usize {
        match self {
            Selection::All(_) => rank,
            Selection::Some(positions) => positions[rank],
        }
    }

    /// How many of the selected lie before `position`.
    fn before(&self, position: usize) -> usize {
        match self {
            Selection::All(count) => position.min(*count),
            Selection::Some(positions) => positions.partition_point(|other| *other < position),
        }
    }
}

/// A page of a list, newest first, after the object named by `starting_after`.
#[derive(Clone, Debug)]
pub struct Page {
    pub limit: usize,
    pub starting_after: Option<String>,
}

impl Provider {
    pub fn list_intents(&self, customer: Option<&str>, page: &Page) -> Result<Value, ApiError> {
        let selection = match customer {
            None => Selection::All(self.intents.len()),
            Some(customer) => Selection::Some(positions(self.intents_by_customer.get(customer))),
        };
        self.page(
            &selection,
            page,
            "/v1/payment_intents",
            &self.intent_by_id,
            "payment_intent",
            |position| self.intents[position].to_json(),
        )
    }

    pub fn charge_json(&self, id: &str) -> Result<Value, ApiError> {
        match self.charge_by_id.get(id) {
            Some(position) => Ok(self.charges[*position].to_json()),
            None => Err(ApiError::no_such("charge", id, "id", StatusCode::NOT_FOUND)),
        }
    }

    pub fn list_charges(
        &self,
        customer: Option<&str>,
        intent: Option<&str>,
        page: &Page,
    ) -> Result<Value, ApiError> {
        let selection = match (intent, customer) {
            (None, None) => Selection::All(self.charges.len()),
            (Some(intent), None) => Selection::Some(match self.intent_by_id.get(intent) {
                Some(position) => &self.intents[*position].charges,
                None => &[],
            }),
            (None, Some(customer)) => {
                Selection::Some(positions(self.charges_by_customer.get(customer)))
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::malformed(
                    "Filter by customer or by payment_intent, not by both.",
                ));
            }
        };
        self.page(
            &selection,
            page,
            "/v1/charges",
            &self.charge_by_id,
            "charge",
            |position| self.charges[position].to_json(),
        )
    }

    /// PaymentIntents that match every clause, newest first. One clause must be indexed: a metadata pair or a customer.
    /// What was created after `visible_until` is not found yet.
    pub fn search_intents(
        &self,
        clauses: &[(String, String)],
        limit: usize,
        visible_until: MonoTime,
    ) -> Result<Value, ApiError> {
        let candidates = indexed(
            clauses,
            &self.intents_by_metadata,
            &self.intents_by_customer,
        )?;
        let visible = candidates
            .iter()
            .rev()
            .map(|position| &self.intents[*position])
            .filter(|intent| intent.created_at <= visible_until && intent.matches(clauses));
        Ok(found(
            "/v1/payment_intents/search",
            limit,
            visible.map(Intent::to_json),
        ))
    }

    /// Charges that match every clause; as `search_intents`.
    pub fn search_charges(
        &self,
        clauses: &[(String, String)],
        limit: usize,
        visible_until: MonoTime,
    ) -> Result<Value, ApiError> {
        let candidates = indexed(
            clauses,
            &self.charges_by_metadata,
            &self.charges_by_customer,
        )?;
        let visible = candidates
            .iter()
            .rev()
            .map(|position| &self.charges[*position])
            .filter(|charge| charge.created_at <= visible_until && charge.matches(clauses));
        Ok(found(
            "/v1/charges/search",
            limit,
            visible.map(Charge::to_json),
        ))
    }

    /// The books: per invoice each charge [id, amount, currency, status], and totals over all.
    pub fn books(&self) -> Value {
        let mut invoices = serde_json::Map::new();
        let mut charged_twice = 0_u64;
        for (invoice, positions) in &self.books {
            let rows: Vec<Value> = positions
                .iter()
                .map(|position| {
                    let charge = &self.charges[*position];
                    json!([
                        charge.id,
                        charge.amount,
                        charge.currency,
                        charge.status.as_str()
                    ])
                })
                .collect();
            if self.succeeded_among(positions) > 1 && invoice != NO_INVOICE {
                charged_twice += 1;
            }
            invoices.insert(invoice.clone(), json!(rows));
        }
        let count = |status| {
            self.charges
                .iter()
                .filter(|charge| charge.status == status)
                .count()
        };
        let mut amounts: BTreeMap<&str, u64> = BTreeMap::new();
        for charge in self
            .charges
            .iter()
            .filter(|charge| charge.status == ChargeStatus::Succeeded)
        {
            *amounts.entry(&charge.currency).or_default() += charge.amount;
        }
        json!({
            "invoices": invoices,
            "totals": {
                "charges": self.charges.len(), "succeeded": count(ChargeStatus::Succeeded),
                "failed": count(ChargeStatus::Failed), "pending": count(ChargeStatus::Pending),
                "invoices_charged": self.books.values().filter(|rows| self.succeeded_among(rows) > 0).count(),
                "charged_twice": charged_twice, "payment_intents": self.intents.len(), "amounts": amounts,
            },
        })
    }

    fn succeeded_among(&self, positions: &[usize]) -> usize {
        positions
            .iter()
            .filter(|position| self.charges[**position].status == ChargeStatus::Succeeded)
            .count()
    }

    fn page(
        &self,
        selection: &Selection<'_>,
        page: &Page,
        url: &str,
        by_id: &HashMap<String, usize>,
        what: &str,
        render: impl Fn(usize) -> Value,
    ) -> Result<Value, ApiError> {
        let end = match &page.starting_after {
            None => selection.len(),
            Some(id) => match by_id.get(id) {
                Some(position) => selection.before(*position),
                None => {
                    return Err(ApiError::no_such(
                        what,
                        id,
                        "starting_after",
                        StatusCode::BAD_REQUEST,
                    ));
                }
            },
        };
        let start = end.saturating_sub(page.limit);
        let data: Vec<Value> = (start..end)
            .rev()
            .map(|rank| render(selection.get(rank)))
            .collect();
        Ok(json!({
            "object": "list", "url": url, "has_more": start > 0, "total_count": selection.len(), "data": data,
        }))
    }
}

/// What a search compares.
trait Searchable {
    fn metadata(&self) -> &Metadata;
    fn customer(&self) -> Option<&str>;
    fn status(&self) -> &'static str;

    fn matches(&self, clauses: &[(String, String)]) -> bool {
        clauses
            .iter()
            .all(|(field, value)| match metadata_key(field) {
                Some(key) => self.metadata().get(key).is_some_and(|held| held == value),
                None if field == "customer" => self.customer() == Some(value),
                None if field == "status" => self.status() == value,
                None => false,
            })
    }
}

impl Searchable for Intent {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn customer(&self) -> Option<&str> {
        self.customer.as_deref()
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }
}

impl Searchable for Charge {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn customer(&self) -> Option<&str> {
        self.customer.as_deref()
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }
}

/// The positions that the first indexed clause names, oldest first.
fn indexed<'a>(
    clauses: &[(String, String)],
    by_metadata: &'a HashMap<(String, String), Vec<usize>>,
    by_customer: &'a HashMap<String, Vec<usize>>,
) -> Result<&'a [usize], ApiError> {
    clauses
        .iter()
        .find_map(
            |(field, value)| match (field.as_str(), metadata_key(field)) {
                (_, Some(key)) => {
                    Some(positions(by_metadata.get(&(key.to_owned(), value.clone()))))
                }
                ("customer", None) => Some(positions(by_customer.get(value))),
                _ => None,
            },
        )
        .ok_or_else(|| {
            ApiError::malformed("The sandbox searches by a metadata pair or by customer.")
        })
}

fn found(url: &str, limit: usize, mut matching: impl Iterator<Item = Value>) -> Value {
    let data: Vec<Value> = matching.by_ref().take(limit).collect();
    json!({
        "object": "search_result", "url": url, "has_more": matching.next().is_some(), "next_page": null, "data": data,
    })
}

/// `metadata['key']` or `metadata["key"]` -> key.
pub fn metadata_key(field: &str) -> Option<&str> {
    field
        .strip_prefix("metadata[")?
        .strip_suffix(']')
        .map(|key| key.trim_matches(['\'', '"']))
}

fn positions(found: Option<&Vec<usize>>) -> &[usize] {
    found.map_or(&[], Vec::as_slice)
}
