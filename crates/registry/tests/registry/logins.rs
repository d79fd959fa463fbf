//! Who asks: passwords, tokens, and tokens that run out.

use std::io::Cursor;

use kiln_registry::testing::{Fault, Lock, Proxy, Server, impatient};
use kiln_registry::{Access, Credentials, Login, RegistryError};

use crate::{noise, repository, repository_as, with_blob};

/// `user:secret`.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn as_user(host: &str, password: &str) -> Access {
    let login = Login::Password { user: "user".to_owned(), password: password.to_owned() };
    Access { credentials: Credentials::none().and(host, login), ..impatient() }
}

#[test]
fn a_password_is_asked_for_and_given() {
    let server = Server::with_password();
    let address = server.address();
    let bytes = noise(1000, 1);
    repository_as(address, &as_user(address, "U*U")).push_bytes(&bytes).unwrap();
    let error = repository_as(address, &as_user(address, "wrong")).push_bytes(&bytes).unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    let error = repository(address).push_bytes(&bytes).unwrap_err();
    assert!(error.to_string().contains("docker login 127.0.0.1"), "{error}");
}

#[test]
fn a_token_is_fetched_once_and_again_when_it_has_run_out() {
    let (server, bytes, blob) = with_blob(300_000);
    let lock = Lock { uses: 2, basic: BASIC.to_owned() };
    let proxy = Proxy::locked(server.address(), lock, |_| Fault::None);
    let repository = repository_as(proxy.address(), &as_user(proxy.address(), "secret"));
    for _ in 0..5 {
        let mut out = Cursor::new(Vec::new());
        repository.pull(&blob, &mut out, &mut |_| {}).unwrap();
        assert!(out.into_inner() == bytes);
    }
    let seen = proxy.seen();
    let tokens: Vec<_> = seen.iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 3, "each is good for two requests");
    assert!(tokens[0].path.contains("scope=repository%3Adisks%2Froot%3Apull"), "{tokens:?}");
    assert!(tokens[0].path.contains("service=test"), "{tokens:?}");
    let to_registry = seen.iter().filter(|seen| seen.is_blob());
    assert!(to_registry.clone().all(|seen| !seen.authorization.starts_with("Basic")));
}

#[test]
fn a_token_that_never_opens_the_door_is_not_asked_for_again_and_again() {
    let (server, _, blob) = with_blob(1000);
    let lock = Lock { uses: 0, basic: String::new() };
    let proxy = Proxy::locked(server.address(), lock, |_| Fault::None);
    let repository = repository(proxy.address());
    let error = repository.pull(&blob, Cursor::new(Vec::new()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    assert_eq!(proxy.seen().len(), 3, "asked, got a token, asked");
}

#[test]
fn a_token_server_that_does_not_know_us_is_believed() {
    let (server, _, blob) = with_blob(1000);
    let lock = Lock { uses: 9, basic: BASIC.to_owned() };
    let proxy = Proxy::locked(server.address(), lock, |_| Fault::None);
    let error = repository(proxy.address()).blob_size(&blob.digest).unwrap_err();
    assert!(error.to_string().contains("docker login"), "{error}");
}

#[test]
fn another_server_does_not_hear_who_we_are() {
    let (server, bytes, blob) = with_blob(100_000);
    let store = Proxy::start(server.address(), |_| Fault::None);
    let target = format!("http://{}/v2/disks/root/blobs/{}", store.address(), blob.digest);
    let lock = Lock { uses: 9, basic: String::new() };
    let proxy = Proxy::locked(server.address(), lock, move |_| Fault::Redirect(target.clone()));
    let mut out = Cursor::new(Vec::new());
    repository(proxy.address()).pull(&blob, &mut out, &mut |_| {}).unwrap();
    assert!(out.into_inner() == bytes);
    let seen = store.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].authorization.as_str(), seen[0].range.as_str()), ("", "bytes=0-99999"));
}
