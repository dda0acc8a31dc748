//! The interface of AUTOMATIC1111's web UI.

use super::Site;
use utoipa_axum::router::OpenApiRouter;

pub(super) fn router() -> OpenApiRouter<Site> {
    OpenApiRouter::new()
}
