//! Encrypted links: certificates, read again when their files change.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::service::{ServiceError, TlsSettings};

/// What links are encrypted with now.
#[derive(Debug)]
pub(super) struct Certificates {
    settings: TlsSettings,
    now: RwLock<(Vec<Option<SystemTime>>, Arc<ServerConfig>)>,
}

impl Certificates {
    pub(super) fn read(settings: &TlsSettings) -> Result<Self, ServiceError> {
        let now = RwLock::new((times(settings), configuration(settings)?));
        Ok(Self { settings: settings.clone(), now })
    }

    /// Returns what the next link is encrypted with.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Reads the files again if they have changed; goes on with what was, if they are not whole. Blocks.
    pub(super) fn renew(&self) {
        let times = times(&self.settings);
        if self.now.read().unwrap_or_else(PoisonError::into_inner).0 == times {
            return;
        }
        match configuration(&self.settings) {
            Ok(configuration) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = (times, configuration);
                tracing::info!("the certificate was read again");
            }
            // Perhaps its key is still being written: it is looked at again.
            Err(error) => tracing::warn!(%error, "the new certificate cannot be used; the old one goes on"),
        }
    }
}

fn times(settings: &TlsSettings) -> Vec<Option<SystemTime>> {
    let files = [Some(&settings.certificate), Some(&settings.key), settings.client_ca.as_ref()];
    files.into_iter().flatten().map(|path| path.metadata().and_then(|it| it.modified()).ok()).collect()
}

fn configuration(settings: &TlsSettings) -> Result<Arc<ServerConfig>, ServiceError> {
    let wrong = |file: &Path, what: &dyn std::fmt::Display| ServiceError::Settings {
        path: file.to_owned(),
        what: what.to_string(),
    };
    let certificates = |file: &Path| {
        let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, &error))?;
        all.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(file, &error))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&settings.certificate, &error))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(file)? {
                roots.add(root).map_err(|error| wrong(file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(file, &error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(|error| wrong(&settings.key, &error))?;
    let mut configuration = builder
        .with_single_cert(certificates(&settings.certificate)?, key)
        .map_err(|error| wrong(&settings.certificate, &error))?;
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(configuration))
}
