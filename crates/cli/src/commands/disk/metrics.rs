//! `kiln disk metrics`, and the metrics of `kiln disk serve`.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_export::nbd::{Address, ListenError};
use kiln_store::metrics::{MetricsServer, exposition};
use kiln_store::{DiskFigures, PoolFigures, Reply, Request, Start, Store, StoreError};
use serde_json::json;

use super::pool;
use crate::arguments::DiskMetricsArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::Interrupted;
use crate::terminal;

/// `kiln disk metrics`
pub(super) fn metrics(
    session: &Session,
    path: &Path,
    args: &DiskMetricsArgs,
) -> Result<Exit, Failure> {
    if let Some(address) = &args.listen {
        let interrupted = Interrupted::watch()
            .tried(|| "cannot listen for signals".to_owned())
            .exits(Exit::InfrastructureBroke)?;
        // Before anybody is told to come.
        drop(pool::owner(session, path)?);
        let server = listen(session, path, address)?;
        match session.json() {
            true => session.out_json(&json!({"address": server.address().to_string()}))?,
            false => terminal::out_line(&server.address().to_string())?,
        }
        while !interrupted.wait(Duration::from_secs(3600)) {}
        return Ok(Exit::Success);
    }
    let (pool, disks) = figures(&pool::open(session, path)?).map_err(pool::refused)?;
    match session.json() {
        true => session.out_json(&json!({"pool": pool, "disks": disks}))?,
        false => terminal::out(&exposition(&pool, &disks))?,
    }
    Ok(Exit::Success)
}

/// Everything that was counted.
pub(super) fn figures(store: &Store) -> Result<(PoolFigures, Vec<DiskFigures>), StoreError> {
    match store.ask(Request::Metrics)? {
        Reply::Metrics { pool, disks } => Ok((pool, disks)),
        // An owner of another version would have been refused before.
        _ => Ok(Default::default()),
    }
}

/// Answers at an address until it is dropped.
pub(super) fn listen(
    session: &Session,
    path: &Path,
    address: &Address,
) -> Result<MetricsServer, Failure> {
    let address = match address {
        Address::Unix(path) => Address::Unix(session.folder.join(path)),
        other => other.clone(),
    };
    // Whoever asks for metrics does not wait for long.
    let start = pool::start(session).patience(Duration::from_secs(2));
    let path = path.to_owned();
    let asked: Mutex<Option<Store>> = Mutex::default();
    let text = move || {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let told = ask_owner(&mut asked, &path, &start);
        let told = told.inspect_err(|error| tracing::warn!(%error, "no metrics"));
        told.ok().map(|(pool, disks)| exposition(&pool, &disks))
    };
    MetricsServer::start(&address, text).map_err(|error| {
        let exit = match error {
            ListenError::Io { .. } => Exit::Setup,
            _ => Exit::Usage,
        };
        Failure::from(error).with_exit(exit)
    })
}

/// Asks the owner, another one if the one that was asked before has gone.
pub(super) fn ask_owner(
    known: &mut Option<Store>,
    path: &Path,
    start: &Start,
) -> Result<(PoolFigures, Vec<DiskFigures>), StoreError> {
    if let Some(told) =
        known.take().and_then(|store| figures(&store).ok().map(|told| (store, told)))
    {
        *known = Some(told.0);
        return Ok(told.1);
    }
    let store = Store::owner(path, start)?;
    let told = figures(&store)?;
    *known = Some(store);
    Ok(told)
}
