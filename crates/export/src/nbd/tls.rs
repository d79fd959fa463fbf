//! What a server needs to be certain of itself and of its clients: certificates, as QEMU keeps them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// Certificates of a folder, read and checked. With it, a server speaks TLS with every client or not at all.
///
/// | file              | what it holds                                                                  |
/// |-------------------|--------------------------------------------------------------------------------|
/// | `server-cert.pem` | the server's certificate, then those between it and its authority              |
/// | `server-key.pem`  | the key that belongs to it                                                     |
/// | `ca-cert.pem`     | authorities for clients: if it is there, clients have to show a certificate    |
/// | `ca-crl.pem`      | certificates that were revoked, if there is such a list                        |
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clients {
    /// Those with a certificate of `ca-cert.pem`; anybody when there is no such file.
    #[default]
    Known,
    /// Those with a certificate of `ca-cert.pem`, which has to be there.
    Certified,
    /// Anybody who can reach the server. What goes over the wire is protected, the disks are not.
    Anybody,
}

/// Why certificates are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or holds something else.
    #[error("cannot read {what} from {path}")]
    File {
        /// `certificates`, `a private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A file holds nothing that is wanted.
    #[error("there is no certificate in {path}")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// What the files hold does not fit together.
    #[error("the certificates in {folder} cannot be used")]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Tls {
    /// Reads a folder's files.
    pub fn open(folder: &Path, clients: Clients) -> Result<Tls, TlsError> {
        let unusable = |source| TlsError::Unusable { folder: folder.to_owned(), source };
        let chain = certificates(&folder.join("server-cert.pem"))?;
        let path = folder.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::File {
            what: "a private key",
            path,
            source,
        })?;
        let authorities = folder.join("ca-cert.pem");
        let verified = match clients {
            Clients::Known => authorities.exists(),
            Clients::Certified => true,
            Clients::Anybody => false,
        };
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.into()))?;
        let config = if verified {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&authorities)? {
                roots.add(certificate).map_err(|error| unusable(error.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(revoked(&folder.join("ca-crl.pem"))?)
                .build()
                .map_err(|error| unusable(error.into()))?;
            config.with_client_cert_verifier(verifier)
        } else {
            config.with_no_client_auth()
        };
        let mut config =
            config.with_single_cert(chain, key).map_err(|error| unusable(error.into()))?;
        // Disks are connected to once and for long: a way to come back quickly is of no use.
        config.send_tls13_tickets = 0;
        Ok(Tls(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// Says nothing of what it holds, which is a key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { what: "certificates", path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(failed)?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect).map_err(
        |source| TlsError::File { what: "revoked certificates", path: path.to_owned(), source },
    )
}
