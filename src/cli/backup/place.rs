//! Where backups go: to a repository here, or to a service that has it.

use crate::backup::{BackupError, BackupOptions, BackupSummary, back_up};
use crate::cli::args::BackupArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::codec::CompressionSetting;
use crate::error::ErrorKind;
use crate::image::Image;
use crate::manifest::ImageName;
use crate::progress::Progress;
use crate::remote::RemoteRepository;
use crate::repository::SharedWriter;

/// Where backups go.
pub(super) enum Place {
    /// A repository that this process has open.
    Here(Box<SharedWriter>),
    /// A service.
    There(RemoteRepository),
}

impl Place {
    /// Returns the service, if one has the repository.
    pub(super) fn there(context: &Context) -> Result<Option<Self>, CliError> {
        Ok(context.service()?.map(Self::There))
    }

    /// Returns the place, after it has opened the repository here if there is none yet.
    pub(super) fn or_here<'a>(
        place: &'a mut Option<Self>,
        args: &BackupArgs,
        context: &Context,
    ) -> Result<&'a Self, CliError> {
        Ok(match place {
            Some(place) => place,
            None => place.insert(Self::Here(Box::new(context.open_shared(args.jobs())?))),
        })
    }

    /// Returns the repository that this process has open.
    pub(super) fn here(&self) -> Result<&SharedWriter, CliError> {
        match self {
            Self::Here(writer) => Ok(writer),
            Self::There(_) => {
                let message = "machines and lists of changes are not sent to a service: run this where the repository is, \
                               while no service has it";
                Err(CliError::new(ErrorKind::Unsupported, message))
            }
        }
    }

    /// Returns how backups are compressed, `wanted` or as the repository has it.
    pub(super) fn compression(&self, wanted: Option<CompressionSetting>) -> CompressionSetting {
        match self {
            Self::Here(writer) => wanted.unwrap_or_else(|| writer.repository().compression()),
            // A session says it.
            Self::There(_) => wanted.unwrap_or_default(),
        }
    }

    /// Backs an image up.
    pub(super) fn back_up(
        &self,
        name: &ImageName,
        image: &dyn Image,
        wanted: Option<CompressionSetting>,
        options: &BackupOptions,
        progress: &dyn Progress,
    ) -> Result<BackupSummary, BackupError> {
        match self {
            Self::Here(writer) => back_up(writer, name, image, options, progress),
            Self::There(remote) => remote.back_up(name, image, wanted, options, progress),
        }
    }

    /// Ends in order.
    pub(super) fn close(self) {
        if let Self::Here(writer) = self
            && let Err(error) = writer.close()
        {
            // Every backup is durable; the next opening checks the index. If a failure is the reason, it has been told
            // already.
            tracing::info!(%error, "the repository was not closed in order");
        }
    }
}
