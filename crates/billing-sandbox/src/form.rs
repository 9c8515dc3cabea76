//! Decides what a form-encoded body or query means: flat keys, brackets kept (`metadata[invoice_id]`), each key once.
//! Never guesses: a parameter that no handler asked for is refused by name.

use std::collections::BTreeMap;

use crate::error::ApiError;
use crate::settings::METADATA_PAIRS_MAX;

/// Parameters in one request. More is refused.
const PARAMETERS_MAX: usize = 256;

/// A request's parameters. Handlers take what they know; `finish` refuses what is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    pub fn parse(bytes: &[u8]) -> Result<Params, ApiError> {
        let mut params = BTreeMap::new();
        for (position, (key, value)) in form_urlencoded::parse(bytes).enumerate() {
            if position >= PARAMETERS_MAX {
                return Err(ApiError::malformed(format!(
                    "More than {PARAMETERS_MAX} parameters."
                )));
            }
            // `expand[]=a&expand[]=b` is a list: number its items, so that none replaces another.
            let key = match key.strip_suffix("[]") {
                Some(list) => format!("{list}[{position}]"),
                None => key.into_owned(),
            };
            if params.insert(key.clone(), value.into_owned()).is_some() {
                return Err(ApiError::malformed(format!("Duplicate parameter: {key}")));
            }
        }
        Ok(Params(params))
    }

    pub fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).filter(|value| !value.is_empty())
    }

    pub fn require(&mut self, key: &str) -> Result<String, ApiError> {
        self.take(key).ok_or_else(|| ApiError::missing(key))
    }

    pub fn take_integer(&mut self, key: &str) -> Result<Option<u64>, ApiError> {
        self.take(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::invalid(
                        "parameter_invalid_integer",
                        key,
                        format!("Invalid integer: {text}"),
                    )
                })
            })
            .transpose()
    }

    pub fn take_bool(&mut self, key: &str) -> Result<bool, ApiError> {
        match self.take(key).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(ApiError::invalid(
                "parameter_invalid",
                key,
                format!("Invalid boolean: {text}"),
            )),
        }
    }

    /// Takes `prefix[key]=value` pairs. An empty value means that the pair is not wanted.
    pub fn take_map(&mut self, prefix: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let mut map = BTreeMap::new();
        for (key, value) in self.take_group(prefix) {
            if !value.is_empty() {
                map.insert(key, value);
            }
        }
        if map.len() > METADATA_PAIRS_MAX {
            let message = format!(
                "{prefix} holds {} pairs; {METADATA_PAIRS_MAX} is the most.",
                map.len()
            );
            return Err(ApiError::invalid("parameter_invalid", prefix, message));
        }
        Ok(map)
    }

    /// Takes and forgets a parameter, or a whole bracketed group, that has no meaning here but that clients send.
    pub fn ignore(&mut self, key: &str) {
        self.0.remove(key);
        self.take_group(key);
    }

    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(ApiError::unknown_parameter(unknown)),
        }
    }

    fn take_group(&mut self, prefix: &str) -> Vec<(String, String)> {
        let open = format!("{prefix}[");
        let names: Vec<String> = self
            .0
            .range(open.clone()..)
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(&open))
            .collect();
        let mut group = Vec::with_capacity(names.len());
        for name in names {
            if let Some(value) = self.0.remove(&name) {
                let inner = name[open.len()..].trim_end_matches(']').to_owned();
                group.push((inner, value));
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Params {
        Params::parse(text.as_bytes()).expect("well formed")
    }

    #[test]
    fn bracket_keys_become_a_map_and_escapes_are_undone() {
        let mut params = parse("metadata%5Binvoice_id%5D=inv-1&metadata[note]=a+b%26c&amount=1500");
        let map = params.take_map("metadata").expect("small enough");
        assert_eq!(map.get("invoice_id").map(String::as_str), Some("inv-1"));
        assert_eq!(map.get("note").map(String::as_str), Some("a b&c"));
        assert_eq!(params.take_integer("amount").expect("a number"), Some(1500));
        params.finish().expect("all taken");
    }

    #[test]
    fn a_parameter_nobody_asked_for_is_refused_by_name() {
        let error = parse("amuont=5").finish().expect_err("unknown");
        assert!(error.to_json()["error"]["param"] == "amuont", "{error:?}");
    }

    #[test]
    fn a_doubled_parameter_is_refused_and_a_list_is_not() {
        assert!(Params::parse(b"amount=1&amount=2").is_err());
        let mut list = parse("expand[]=a&expand[]=b");
        list.ignore("expand");
        list.finish().expect("the whole list is taken");
    }

    #[test]
    fn same_parameters_in_another_order_are_the_same() {
        assert_eq!(parse("a=1&b=2"), parse("b=2&a=1"));
        assert_ne!(parse("a=1&b=2"), parse("a=1&b=3"));
    }
}
