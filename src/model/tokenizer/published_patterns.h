// The pre-tokenizer patterns that the supported families are published with, for the two formats
// that name a tokenizer without saying how it cuts text: GGUF (tokenizer.ggml.pre) and
// tiktoken.model. A tokenizer.json brings its own.
#pragma once

#include <string_view>

namespace moraine {

#define MORAINE_CONTRACTION R"((?i:'s|'t|'re|'ve|'m|'ll|'d))"
#define MORAINE_BLANKS R"(\s*[\r\n]+|\s+(?!\S)|\s+)"

// Qwen2, Qwen2.5, Qwen3.
inline constexpr std::string_view kQwen2Pattern =
    MORAINE_CONTRACTION
    R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" MORAINE_BLANKS;

// Qwen3.5: marks belong to words.
inline constexpr std::string_view kQwen35Pattern =
    MORAINE_CONTRACTION
    R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" MORAINE_BLANKS;

// Llama 3 and GLM-4: as Qwen2 with up to three digits together.
inline constexpr std::string_view kLlama3Pattern =
    MORAINE_CONTRACTION
    R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" MORAINE_BLANKS;

// o200k (gpt-oss, MiniMax-M2): words are cut where the case rises.
#define MORAINE_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define MORAINE_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
inline constexpr std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?)" MORAINE_UPPER "*" MORAINE_LOWER "+" MORAINE_CONTRACTION "?|"
    R"([^\r\n\p{L}\p{N}]?)" MORAINE_UPPER "+" MORAINE_LOWER "*" MORAINE_CONTRACTION "?|"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" MORAINE_BLANKS;

// Kimi-K2 (remote code of the checkpoint): o200k without Han, runs of which stand for themselves.
#define MORAINE_UPPER_NOT_HAN R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]])"
#define MORAINE_LOWER_NOT_HAN R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]])"
inline constexpr std::string_view kKimiPattern =
    R"([\p{Han}]+|)"
    R"([^\r\n\p{L}\p{N}]?)" MORAINE_UPPER_NOT_HAN "*" MORAINE_LOWER_NOT_HAN "+"
    MORAINE_CONTRACTION "?|"
    R"([^\r\n\p{L}\p{N}]?)" MORAINE_UPPER_NOT_HAN "+" MORAINE_LOWER_NOT_HAN "*"
    MORAINE_CONTRACTION "?|"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" MORAINE_BLANKS;

// DeepSeek-V3, R1: three splits in a row.
inline constexpr std::string_view kDeepSeekV3Patterns[] = {
    R"(\p{N}{1,3})",
    R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|)" MORAINE_BLANKS,
};

// DeepSeek-LLM, V2, V2-Lite: five splits, and behind them single digits. The letters of the second
// are those of the scripts that have case; as numbers, because a copy of the characters that went
// through NFC has other ranges.
inline constexpr std::string_view kDeepSeekV2Patterns[] = {
    R"([\r\n])",
    R"(\s?[)"
    R"(\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF})"
    R"(\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386})"
    R"(\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F})"
    R"(\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15})"
    R"(\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B})"
    R"(\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4})"
    R"(\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4})"
    R"(\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124})"
    R"(\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F})"
    R"(\x{2145}-\x{2149}\x{214E}\x{2183}-\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4})"
    R"(\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F})"
    R"(\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17})"
    R"(\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3})"
    R"(\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943})"
    R"(]+)",
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)",
    R"(\s+$)",
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)",
};

#undef MORAINE_CONTRACTION
#undef MORAINE_BLANKS
#undef MORAINE_UPPER
#undef MORAINE_LOWER
#undef MORAINE_UPPER_NOT_HAN
#undef MORAINE_LOWER_NOT_HAN

}  // namespace moraine
