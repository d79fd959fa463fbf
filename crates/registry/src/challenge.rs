//! What a registry wants to see before it answers: `WWW-Authenticate`, and the tokens that answer it.

use std::time::Duration;

use serde::Deserialize;

/// The most challenges and parameters that are looked at.
const MOST: usize = 16;
/// How long a token lives that does not say so.
const DEFAULT_LIFE: u64 = 60;

/// One way of saying who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token, which another server gives out.
    Bearer {
        /// That server.
        realm: String,
        /// What to call the registry there.
        service: Option<String>,
        /// What the token is to allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenges of a header that make sense, in their order.
    pub fn parse(header: &str) -> Vec<Challenge> {
        let mut found = Vec::new();
        let mut rest = header.trim_start();
        while !rest.is_empty() && found.len() < MOST {
            let (scheme, after) = word(rest);
            if scheme.is_empty() {
                break;
            }
            let (parameters, after) = parameters(after.trim_start());
            rest = after;
            let value = |name: &str| {
                let mut named = parameters.iter().filter(|(found, _)| found == name);
                named.next().map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                found.push(Challenge::Bearer {
                    realm,
                    service: value("service"),
                    scope: value("scope"),
                });
            }
        }
        found
    }
}

/// A token of letters at the start, and what follows.
fn word(text: &str) -> (&str, &str) {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(byte);
    let len = text.bytes().take_while(|byte| is_letter(byte)).count();
    text.split_at(len)
}

type Parameters = Vec<(String, String)>;

/// `name=value, name="value"`, up to the next scheme.
fn parameters(mut rest: &str) -> (Parameters, &str) {
    let mut found = Parameters::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = word(rest);
        let Some(after) = after.trim_start().strip_prefix('=') else { return (found, rest) };
        if name.is_empty() {
            return (found, "");
        }
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, after) = word(after);
                (value.to_owned(), after)
            }
        };
        if found.len() < MOST {
            found.push((name.to_ascii_lowercase(), value));
        }
        rest = after;
    }
}

/// A quoted string behind its first quote, and what follows the last one.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

/// What a token server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What to show.
    pub value: String,
    /// For how long.
    pub life: Duration,
}

#[derive(Deserialize)]
struct RawToken {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Token {
    /// Reads a token server's answer.
    pub fn parse(bytes: &[u8]) -> Result<Token, String> {
        let raw: RawToken = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let value = if raw.token.is_empty() { raw.access_token } else { raw.token };
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("there is no token in it".to_owned());
        }
        // Nobody's token is good for more than a day, whatever it says.
        let life = raw.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 86_400);
        Ok(Token { value, life: Duration::from_secs(life) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let text =
            r#"Bearer realm="https://a/token",service="r.x",scope="repository:a/b:pull,push""#;
        let scope = Some("repository:a/b:pull,push");
        assert_eq!(Challenge::parse(text), [bearer("https://a/token", Some("r.x"), scope)]);
        let two = r#"Negotiate, basic realm="x, y", BEARER realm=z , error="a\"b""#;
        assert_eq!(Challenge::parse(two), [Challenge::Basic, bearer("z", None, None)]);
        assert_eq!(Challenge::parse("Basic"), [Challenge::Basic]);
    }

    #[test]
    fn what_is_no_challenge_is_passed_over() {
        for text in
            ["", " ", "=", "Bearer", "Bearer =x", "Bearer realm", "\"", "Bearer service=\"x", "é"]
        {
            assert_eq!(Challenge::parse(text), [], "{text}");
        }
    }

    #[test]
    fn tokens_are_read_under_both_names() {
        let token = Token::parse(br#"{"access_token":"x","expires_in":300}"#).unwrap();
        assert_eq!((token.value.as_str(), token.life.as_secs()), ("x", 300));
        assert_eq!(Token::parse(br#"{"token":"y"}"#).unwrap().life.as_secs(), 60);
        for wrong in ["", "{}", r#"{"token":""}"#, "{\"token\":\"a\\nb\"}", r#"{"token":1}"#] {
            assert!(Token::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
