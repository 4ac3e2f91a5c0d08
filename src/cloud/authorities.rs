//! The authorities whose certificates the API may show, where they are not those that are compiled in.
//!
//! Owns the reading of the file with them. It replaces what is compiled in, as `SSL_CERT_FILE` does for Go's programs and for
//! OpenSSL's.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

/// The largest file that is read. All authorities that browsers trust fill a quarter of a mebibyte.
const MAX_FILE: u64 = 16 << 20;

/// Authorities that are trusted, and no others.
#[derive(Clone)]
pub struct Authorities {
    path: PathBuf,
    certificates: Arc<Vec<Certificate<'static>>>,
}

/// Why a file has no authorities.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct BadAuthorities {
    path: PathBuf,
    why: String,
}

impl Authorities {
    /// Reads a file of certificates in PEM, one after the other; what else it has is passed over.
    ///
    /// # Errors
    /// [`BadAuthorities`] when it cannot be read or has no certificate that can be used.
    pub fn read(path: &Path) -> Result<Authorities, BadAuthorities> {
        let bad = |why: String| BadAuthorities { path: path.to_owned(), why };
        let size = fs::metadata(path).map_err(|err| bad(err.to_string()))?.len();
        if size > MAX_FILE {
            return Err(bad("it is too large for a file of certificates".to_owned()));
        }
        let text = fs::read(path).map_err(|err: io::Error| bad(err.to_string()))?;
        let mut certificates = Vec::new();
        for item in parse_pem(&text) {
            if let PemItem::Certificate(certificate) = item.map_err(|err| bad(err.to_string()))? {
                certificates.push(certificate);
            }
        }
        // The library passes over those that it cannot use, and would in the end trust nobody.
        let ders: Vec<CertificateDer<'_>> = certificates.iter().map(|one| CertificateDer::from(one.der())).collect();
        let (usable, _) = RootCertStore::empty().add_parsable_certificates(ders);
        if usable == 0 {
            return Err(bad("it has no certificate in PEM (-----BEGIN CERTIFICATE-----) that can be used".to_owned()));
        }
        Ok(Authorities { path: path.to_owned(), certificates: Arc::new(certificates) })
    }

    /// The authorities as the HTTP library takes them.
    pub(super) fn roots(&self) -> RootCerts {
        RootCerts::Specific(Arc::clone(&self.certificates))
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.certificates.len(), self.path.display())
    }
}
