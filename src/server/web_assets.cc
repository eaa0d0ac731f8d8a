// The files that web/CMakeLists.txt has built, as they are: the assembler copies them in, which costs
// nothing to compile and keeps them out of the sources.
#include <array>

#include "server/web_page.h"

// NOLINTBEGIN: two symbols around a file's bytes.
#define MORAINE_EMBED(symbol, file)                                                      \
  asm(".section .rodata\n" #symbol "_begin:\n.incbin \"" MORAINE_WEB_DIRECTORY "/" file \
      "\"\n" #symbol "_end:\n.byte 0\n.previous\n");                                     \
  extern "C" const char symbol##_begin[], symbol##_end[]
// NOLINTEND

MORAINE_EMBED(moraine_index_html, "index.html");
MORAINE_EMBED(moraine_page_js, "page.js");
MORAINE_EMBED(moraine_page_css, "page.css");
MORAINE_EMBED(moraine_icon_svg, "icon.svg");
MORAINE_EMBED(moraine_licenses_txt, "licenses.txt");

namespace moraine {

std::span<const WebAsset> EmbeddedWebAssets() {
  static const std::array<WebAsset, 5> assets = {{
      {"/", "text/html; charset=utf-8", {moraine_index_html_begin, moraine_index_html_end}},
      {"/page.js", "text/javascript; charset=utf-8", {moraine_page_js_begin, moraine_page_js_end}},
      {"/page.css", "text/css; charset=utf-8", {moraine_page_css_begin, moraine_page_css_end}},
      {"/icon.svg", "image/svg+xml", {moraine_icon_svg_begin, moraine_icon_svg_end}},
      {"/licenses.txt", "text/plain; charset=utf-8",
       {moraine_licenses_txt_begin, moraine_licenses_txt_end}},
  }};
  return assets;
}

}  // namespace moraine
