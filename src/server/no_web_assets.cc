// A build without the page (MORAINE_WEB_PAGE is off, npm is not there, or it is for a sanitizer).
#include "server/web_page.h"

namespace moraine {

std::span<const WebAsset> EmbeddedWebAssets() { return {}; }

}  // namespace moraine
