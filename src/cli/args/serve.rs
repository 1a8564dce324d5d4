//! The arguments of the service.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct ServeArgs {
    /// An address to listen on; may be given several times [default: 127.0.0.1:6800]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(in crate::cli) listen: Vec<SocketAddr>,
    /// A file of settings, in TOML; what is said here is taken instead
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// The certificate of this host, in PEM, with those that lead from it to a root
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(in crate::cli) tls_certificate: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(in crate::cli) tls_key: Option<PathBuf>,
    /// The roots of clients' certificates, in PEM: clients without one are refused
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(in crate::cli) tls_client_ca: Option<PathBuf>,
    /// Listen without encryption where others reach it: behind a proxy that encrypts
    #[arg(long)]
    pub(in crate::cli) insecure: bool,
    /// Write the log as JSON, a line for each event
    #[arg(long)]
    pub(in crate::cli) log_json: bool,
}
