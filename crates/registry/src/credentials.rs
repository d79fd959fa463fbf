//! Names and passwords, where docker and podman keep them: `config.json` and its helper programs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::RegistryError;

/// The largest configuration, and the longest answer of a helper, that anybody reads.
const LARGEST: u64 = 1 << 20;
/// How long a helper may take; it may have to ask its user for a password.
const HELPER_TIME: Duration = Duration::from_secs(120);
/// The name under which docker keeps its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is exchanged for others.
    Identity(String),
}

/// Without what is secret.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Password { user, .. } => write!(f, "Login({user:?})"),
            Login::Identity(_) => f.write_str("Login(identity token)"),
        }
    }
}

impl Login {
    /// The header of basic authentication, where there is a password.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Login::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Login::Identity(_) => None,
        }
    }
}

/// Where logins are looked up.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    known: BTreeMap<String, Login>,
    files: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    auths: BTreeMap<String, RawAuth>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawSecret {
    username: String,
    secret: String,
}

impl Credentials {
    /// None at all: everything is asked for anonymously.
    pub fn none() -> Credentials {
        Credentials::default()
    }

    /// Those in the first of these files that knows the registry; files that do not exist are passed over.
    pub fn in_files(files: Vec<PathBuf>) -> Credentials {
        Credentials { known: BTreeMap::new(), files }
    }

    /// Files that docker and podman would look into, with this environment.
    pub fn usual_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
        let below = |name: &str, path: &str| variable(name).map(|folder| folder.join(path));
        let docker =
            below("DOCKER_CONFIG", "config.json").or_else(|| below("HOME", ".docker/config.json"));
        let podman = below("XDG_RUNTIME_DIR", "containers/auth.json");
        [variable("REGISTRY_AUTH_FILE"), docker, podman].into_iter().flatten().collect()
    }

    /// These, for one registry, before any file.
    #[must_use]
    pub fn and(mut self, host: &str, login: Login) -> Credentials {
        self.known.insert(host.to_owned(), login);
        self
    }

    /// Who we are to a registry; `None` for nobody.
    pub fn find(&self, host: &str) -> Result<Option<Login>, RegistryError> {
        if let Some(login) = self.known.get(host) {
            return Ok(Some(login.clone()));
        }
        for file in &self.files {
            if let Some(config) = read(file)?
                && let Some(login) = in_config(&config, file, host)?
            {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

fn wrong(place: impl fmt::Display, why: impl fmt::Display) -> RegistryError {
    RegistryError::Credentials { place: place.to_string(), why: why.to_string() }
}

fn read(path: &Path) -> Result<Option<RawConfig>, RegistryError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| wrong(path.display(), error))?,
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| wrong(path.display(), error))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(path.display(), "it is larger than a mebibyte"));
    }
    // The parser's errors quote what they stumble over, which may be a password.
    let config = serde_json::from_slice(&text).map_err(|error| {
        wrong(path.display(), format!("line {} is not what docker writes", error.line()))
    })?;
    Ok(Some(config))
}

/// Names under which a registry may be found.
fn keys(host: &str) -> Vec<String> {
    let mut keys = vec![host.to_owned()];
    if host == "docker.io" {
        keys.push(DOCKER_HUB.to_owned());
        keys.push("index.docker.io".to_owned());
    }
    for scheme in ["https", "http"] {
        keys.extend(["", "/", "/v1/", "/v2/"].map(|end| format!("{scheme}://{host}{end}")));
    }
    keys
}

fn in_config(config: &RawConfig, file: &Path, host: &str) -> Result<Option<Login>, RegistryError> {
    let keys = keys(host);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key));
    if let Some(helper) = helper {
        return ask(helper, host);
    }
    let auth = keys.iter().find_map(|key| config.auths.get(key));
    if let Some(login) = auth.map(|auth| login(auth, file)).transpose()?.flatten() {
        return Ok(Some(login));
    }
    if config.creds_store.is_empty() {
        return Ok(None);
    }
    ask(&config.creds_store, host)
}

fn login(auth: &RawAuth, file: &Path) -> Result<Option<Login>, RegistryError> {
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Login::Identity(auth.identitytoken.clone())));
    }
    if !auth.username.is_empty() {
        let (user, password) = (auth.username.clone(), auth.password.clone());
        return Ok(Some(Login::Password { user, password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let text = STANDARD.decode(auth.auth.trim()).ok().and_then(|text| String::from_utf8(text).ok());
    let text = text.ok_or_else(|| wrong(file.display(), "an `auth` in it is not base64"))?;
    let (user, password) = text
        .split_once(':')
        .ok_or_else(|| wrong(file.display(), "an `auth` in it is not NAME:PASSWORD"))?;
    // Docker pads what it writes.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Login::Password { user: user.to_owned(), password }))
}

/// Asks a helper program under the names it may know the registry by.
fn ask(helper: &str, host: &str) -> Result<Option<Login>, RegistryError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let program = format!("docker-credential-{helper}");
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(wrong(program, "that is no program's name"));
    }
    let names = match host {
        "docker.io" => vec![DOCKER_HUB.to_owned()],
        _ => vec![host.to_owned(), format!("https://{host}")],
    };
    for name in names {
        if let Some(secret) = run(&program, &name)? {
            return Ok(Some(match secret.username.as_str() {
                "<token>" => Login::Identity(secret.secret),
                _ => Login::Password { user: secret.username, password: secret.secret },
            }));
        }
    }
    Ok(None)
}

fn run(program: &str, name: &str) -> Result<Option<RawSecret>, RegistryError> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| wrong(program, error))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // A helper that does not listen will not know the registry either.
        let _ = stdin.write_all(name.as_bytes());
    }
    let (tell, told) = mpsc::channel();
    let reading = std::thread::Builder::new().name("credentials".to_owned()).spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|stdout| stdout.take(LARGEST).read_to_end(&mut answer));
        // Fails when nobody waits any more.
        let _ = tell.send(read.unwrap_or(Ok(0)).map(|_| answer));
    });
    let answer = match reading {
        Ok(_) => told.recv_timeout(HELPER_TIME).map_err(|_| "it does not answer".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let answer = match answer {
        Ok(answer) => answer.map_err(|error| wrong(program, error))?,
        Err(why) => {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(wrong(program, why));
        }
    };
    let status = child.wait().map_err(|error| wrong(program, error))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if said.contains("not found") {
            return Ok(None);
        }
        return Err(wrong(program, format!("it failed with {status}")));
    }
    serde_json::from_slice(&answer)
        .map(Some)
        .map_err(|_| wrong(program, "its answer is not what docker's helpers write"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn find(text: &str, host: &str) -> Result<Option<Login>, RegistryError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        fs::write(&file, text).unwrap();
        Credentials::in_files(vec![folder.path().join("missing"), file]).find(host)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn logins_are_found_as_docker_and_podman_write_them() {
        let text = r#"{"auths":{"r.x:5000":{"auth":"dTpwOnE="},"https://index.docker.io/v1/":
            {"username":"me","password":"secret"},"https://z.x/v2/":{"identitytoken":"abc"}}}"#;
        assert_eq!(find(text, "r.x:5000").unwrap(), password("u", "p:q"));
        assert_eq!(find(text, "docker.io").unwrap(), password("me", "secret"));
        assert_eq!(find(text, "z.x").unwrap(), Some(Login::Identity("abc".to_owned())));
        assert_eq!(find(text, "r.x").unwrap(), None);
        assert_eq!(find("{}", "r.x").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_named_and_its_secrets_are_not() {
        for text in ["{", r#"{"auths":{"r.x":{"auth":"secret!"}}}"#, r#"{"auths":"secret"}"#] {
            let error = find(text, "r.x").unwrap_err().to_string();
            assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
        }
        let login = password("me", "secret");
        assert!(!format!("{login:?}").contains("secret"));
    }

    #[test]
    fn a_helper_is_asked_and_its_ignorance_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = folder.path().join(format!("docker-credential-{name}"));
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        let knows = helper(
            "knows",
            r#"read name; [ "$1 $name" = "get r.x" ] && echo '{"Username":"u","Secret":"s"}'"#,
        );
        let secret = run(&knows, "r.x").unwrap().unwrap();
        assert_eq!((secret.username.as_str(), secret.secret.as_str()), ("u", "s"));
        let ignorant = helper("ignorant", "echo credentials not found in native keychain; exit 1");
        assert!(run(&ignorant, "r.x").unwrap().is_none());
        let broken = helper("broken", "exit 7");
        assert!(run(&broken, "r.x").err().unwrap().to_string().contains("7"));
        assert!(
            find(r#"{"credsStore":"../x"}"#, "r.x").unwrap_err().to_string().contains("no program")
        );
    }
}
