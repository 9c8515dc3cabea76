//! Decides what a look at the provider shows: pages of objects, a search, and the books. Changes nothing.

use std::collections::{BTreeMap, HashMap};

use billing_env::MonoTime;
use http::StatusCode;
use serde_json::{Value, json};

use super::{NO_INVOICE, Provider};
use crate::error::ApiError;
use crate::objects::{ChargeStatus, Intent};

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
        let indexed =
            clauses.iter().find_map(
                |(field, value)| match (field.as_str(), metadata_key(field)) {
                    (_, Some(key)) => Some(positions(
                        self.intents_by_metadata
                            .get(&(key.to_owned(), value.clone())),
                    )),
                    ("customer", None) => Some(positions(self.intents_by_customer.get(value))),
                    _ => None,
                },
            );
        let Some(candidates) = indexed else {
            return Err(ApiError::malformed(
                "The sandbox searches by a metadata pair or by customer.",
            ));
        };
        let mut found = Vec::new();
        let mut has_more = false;
        for position in candidates.iter().rev() {
            let intent = &self.intents[*position];
            if intent.created_at <= visible_until
                && clauses
                    .iter()
                    .all(|(field, value)| intent.matches(field, value))
            {
                if found.len() == limit {
                    has_more = true;
                    break;
                }
                found.push(intent.to_json());
            }
        }
        Ok(json!({
            "object": "search_result", "url": "/v1/payment_intents/search", "has_more": has_more, "next_page": null,
            "data": found,
        }))
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

impl Intent {
    fn matches(&self, field: &str, value: &str) -> bool {
        match metadata_key(field) {
            Some(key) => self.metadata.get(key).is_some_and(|held| held == value),
            None if field == "customer" => self.customer.as_deref() == Some(value),
            None if field == "status" => self.status.as_str() == value,
            None => false,
        }
    }
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
