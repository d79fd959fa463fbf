//! Where a server listens.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A unix socket, or a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system, which only the server's user can reach.
    Unix(PathBuf),
    /// A TCP port, which every user of this machine can reach, and others where it is not a loopback address;
    /// 0 is any free one.
    Tcp(SocketAddr),
}

/// A text that is not an address a server may listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// It has neither form.
    #[error(
        "{text:?} is not an address: write unix:PATH, or HOST:PORT with localhost or a number as the host, such as \
         127.0.0.1:10809 or [::1]:10809"
    )]
    Form {
        /// What was written.
        text: String,
    },
    /// Other machines could reach it.
    #[error(
        "{address} is not a loopback address, so other machines could reach it: that takes TLS certificates; \
         or use a unix socket, or 127.0.0.1 behind an SSH tunnel"
    )]
    NotLoopback {
        /// What was written.
        address: String,
    },
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Address, ParseAddressError> {
        let short = || text.chars().take(200).collect::<String>();
        if let Some(path) = text.strip_prefix("unix:") {
            let named = !path.is_empty() && !path.contains('\0');
            return named
                .then(|| Address::Unix(path.into()))
                .ok_or_else(|| ParseAddressError::Form { text: short() });
        }
        let (host, port) = text
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| ParseAddressError::Form { text: short() })?;
        let port: u16 = port.parse().map_err(|_| ParseAddressError::Form { text: short() })?;
        if host == "localhost" {
            return Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Address::Tcp).map_err(|_| ParseAddressError::Form { text: short() })
    }
}

impl Address {
    /// Only the machine itself may reach a server without TLS: what goes over the wire is not protected.
    pub(crate) fn refuse_other_machines(&self) -> Result<(), ParseAddressError> {
        match self {
            Address::Tcp(address) if !address.ip().is_loopback() => {
                Err(ParseAddressError::NotLoopback { address: address.to_string() })
            }
            Address::Tcp(_) | Address::Unix(_) => Ok(()),
        }
    }

    /// How clients name an export here: an NBD URI.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Address::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", Quoted(export.as_bytes()), quoted_path(path))
            }
            Address::Tcp(address) => format!("nbd://{address}/{}", Quoted(export.as_bytes())),
        }
    }
}

/// As it would be written for [`FromStr`].
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "{address}"),
        }
    }
}

fn quoted_path(path: &Path) -> Quoted<'_> {
    Quoted(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
}

/// Bytes in a URI.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
                write!(f, "{}", char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_written() {
        for text in ["unix:/run/kiln/disks", "127.0.0.1:10809", "[::1]:0", "127.8.8.8:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 1).into())));
    }

    #[test]
    fn other_machines_need_tls() {
        for text in ["0.0.0.0:10809", "[::]:1", "192.168.0.1:10809"] {
            let error = text.parse::<Address>().unwrap().refuse_other_machines().unwrap_err();
            assert!(matches!(error, ParseAddressError::NotLoopback { .. }), "{text}: {error}");
            assert!(error.to_string().contains("TLS"), "{error}");
        }
        for text in ["127.0.0.1:1", "[::1]:1", "unix:x"] {
            text.parse::<Address>().unwrap().refuse_other_machines().unwrap();
        }
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for text in [
            "",
            "unix:",
            "10809",
            ":10809",
            "127.0.0.1",
            "127.0.0.1:99999",
            "[::1:5",
            "disks.example:1",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(matches!(error, ParseAddressError::Form { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn uris_quote_what_would_mean_something_else() {
        let unix = Address::Unix("/run/a b&c".into());
        assert_eq!(unix.uri("x@1"), "nbd+unix:///x%401?socket=/run/a%20b%26c");
        let tcp: Address = "[::1]:5".parse().unwrap();
        assert_eq!(tcp.uri("d"), "nbd://[::1]:5/d");
    }
}
