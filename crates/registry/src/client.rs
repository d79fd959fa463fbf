//! A registry, spoken to with whatever login it wants.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ureq::http::{Method, StatusCode};

use crate::challenge::{Challenge, Token};
use crate::credentials::Login;
use crate::http::{Answer, Http, Options, Payload, Request, escaped, origin, shown, until};
use crate::{Credentials, Reference, RegistryError};

/// The largest answer of a token server.
const LARGEST_TOKEN: u64 = 256 << 10;
/// What we are called there.
const CLIENT: &str = "kiln";

/// How a registry is reached.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Who we are.
    pub credentials: Credentials,
    /// Without TLS. On this machine that is so anyway.
    pub plain_http: bool,
    /// How patient to be.
    pub options: Options,
}

/// A registry.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) http: Http,
    host: String,
    base: String,
    credentials: Credentials,
    auth: Mutex<Auth>,
}

/// What was learnt about who may ask.
#[derive(Debug, Default)]
struct Auth {
    login: Option<Option<Login>>,
    basic: Option<String>,
    tokens: HashMap<String, (String, Instant)>,
}

impl Client {
    pub(crate) fn new(reference: &Reference, access: &Access) -> Result<Client, RegistryError> {
        let plain = access.plain_http || reference.is_loopback();
        let scheme = if plain { "http" } else { "https" };
        Ok(Client {
            http: Http::new(access.options.clone(), !plain)?,
            host: reference.host().to_owned(),
            base: format!("{scheme}://{}", reference.address()),
            credentials: access.credentials.clone(),
            auth: Mutex::default(),
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The address of something below `/v2/`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/v2/{path}", self.base)
    }

    /// Sends once, after whatever it takes to be let in. Answers that say no are answers.
    pub(crate) fn call(&self, request: &Request<'_>, scope: &str) -> Result<Answer, RegistryError> {
        // Elsewhere nobody needs to know who we are.
        let is_home = origin(&request.url) == origin(&self.base);
        let mut was_refused = false;
        loop {
            let authorization = if is_home { self.authorization(scope) } else { None };
            let answer = self.http.send(request, authorization.as_deref())?;
            let is_own = origin(&answer.url) == origin(&self.base);
            if answer.status != StatusCode::UNAUTHORIZED || !is_own {
                return Ok(answer);
            }
            let challenges: Vec<Challenge> = answer
                .headers
                .get_all("www-authenticate")
                .iter()
                .filter_map(|header| header.to_str().ok())
                .flat_map(Challenge::parse)
                .collect();
            // A token may have run out; one that was just given out has not.
            if was_refused {
                let why = match answer.refused(request.act) {
                    RegistryError::Status { said, .. } if !said.is_empty() => said,
                    _ => "the login was not accepted".to_owned(),
                };
                return Err(self.denied(request, why.trim().to_owned()));
            }
            was_refused = true;
            self.forget(scope);
            self.log_in(request, scope, &challenges)?;
        }
    }

    fn denied(&self, request: &Request<'_>, why: String) -> RegistryError {
        let (host, what) = (self.host.clone(), shown(&request.url));
        RegistryError::Denied { host, act: request.act, what, why }
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authorization(&self, scope: &str) -> Option<String> {
        let auth = self.auth();
        let token = auth.tokens.get(scope).filter(|(_, end)| *end > Instant::now());
        token.map(|(token, _)| format!("Bearer {token}")).or_else(|| auth.basic.clone())
    }

    fn forget(&self, scope: &str) {
        let mut auth = self.auth();
        auth.tokens.remove(scope);
        auth.basic = None;
    }

    /// Who we are here, looked up once.
    fn login(&self) -> Result<Option<Login>, RegistryError> {
        if let Some(login) = &self.auth().login {
            return Ok(login.clone());
        }
        let login = self.credentials.find(&self.host)?;
        self.auth().login = Some(login.clone());
        Ok(login)
    }

    fn log_in(
        &self,
        request: &Request<'_>,
        scope: &str,
        challenges: &[Challenge],
    ) -> Result<(), RegistryError> {
        let login = self.login()?;
        let bearer = challenges.iter().find(|challenge| **challenge != Challenge::Basic);
        if let Some(Challenge::Bearer { realm, service, scope: wanted }) = bearer {
            let wanted = match scope.is_empty() {
                true => wanted.as_deref().unwrap_or_default(),
                false => scope,
            };
            let token = self.token(request, realm, service.as_deref(), wanted, login.as_ref())?;
            self.auth().tokens.insert(scope.to_owned(), (token.value, until(token.life)));
            return Ok(());
        }
        if challenges.is_empty() {
            let why = "it does not say how to log in".to_owned();
            return Err(self.denied(request, why));
        }
        let basic = login.as_ref().and_then(Login::basic);
        let host = &self.host;
        let basic = basic.ok_or_else(|| {
            self.denied(request, format!("it wants a name and a password; `docker login {host}`"))
        })?;
        self.auth().basic = Some(basic);
        Ok(())
    }

    /// Asks the token server.
    fn token(
        &self,
        request: &Request<'_>,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        login: Option<&Login>,
    ) -> Result<Token, RegistryError> {
        let wrong = |rule: &str| RegistryError::Protocol {
            url: shown(&request.url),
            rule: format!("{rule} to log in"),
            passing: false,
        };
        match origin(realm) {
            Some((scheme, _)) if scheme == "https" => {}
            Some((scheme, _)) if scheme == "http" && self.base.starts_with("http:") => {}
            Some(_) => return Err(wrong("it sends us to a server without TLS")),
            None => return Err(wrong("it sends us nowhere")),
        }
        let mut query = vec![("client_id", CLIENT)];
        query.extend(service.map(|service| ("service", service)));
        // One parameter for each scope.
        query.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|one| ("scope", one)));
        let answer = self.http.persist(|| {
            let answer = match login {
                Some(Login::Identity(token)) => {
                    let grant = [("grant_type", "refresh_token"), ("refresh_token", token)];
                    // A form has one scope, with spaces.
                    let scope =
                        [("scope", scope)].into_iter().filter(|(_, scope)| !scope.is_empty());
                    let plain = query.iter().copied().filter(|(name, _)| *name != "scope");
                    let form = joined(grant.into_iter().chain(plain).chain(scope));
                    let request = Request::new("log in at", Method::POST, realm)
                        .header("content-type", "application/x-www-form-urlencoded")
                        .payload(Payload::Bytes(form.as_bytes()));
                    self.http.send(&request, None)?
                }
                login => {
                    let separator = if realm.contains('?') { '&' } else { '?' };
                    let url = format!("{realm}{separator}{}", joined(query.iter().copied()));
                    let mut request = Request::get(url);
                    request.act = "log in at";
                    let basic = login.and_then(Login::basic);
                    self.http.send(&request, basic.as_deref())?
                }
            };
            match answer.status.as_u16() {
                200..300 => Ok(answer),
                400 | 401 | 403 => {
                    let why = match login {
                        Some(_) => "the login was not accepted".to_owned(),
                        None => format!("it wants a login; `docker login {}`", self.host),
                    };
                    Err(self.denied(request, why))
                }
                _ => Err(answer.refused("log in at")),
            }
        })?;
        let bytes = answer.bytes(LARGEST_TOKEN)?;
        Token::parse(&bytes).map_err(|rule| RegistryError::Protocol {
            url: shown(realm),
            rule,
            passing: false,
        })
    }
}

fn joined<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    pairs.join("&")
}
