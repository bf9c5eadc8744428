// SPDX-License-Identifier: Apache-2.0
#include "recipe.hpp"

#include <cstddef>
#include <set>
#include <string_view>
#include <utility>

#include <CLI/CLI.hpp>

#include <cbq/io/json.hpp>

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

constexpr cbq::JsonLimits limits = {.bytes = std::size_t{1} << 20, .values = std::size_t{1} << 16, .depth = 3};

enum class Kind : unsigned char { flag, number, text };

// What an option takes, by the name that its help has for values.
Kind kind_of(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return Kind::flag;
  const std::string name = option.get_type_name();
  constexpr std::string_view numbers = "NSRWDT";
  const std::size_t end = name.find(':');  // what follows describes its checks
  return end <= 1 || name.size() == 1 ? (numbers.find(name[0]) == std::string_view::npos ? Kind::text : Kind::number)
                                      : Kind::text;
}

// Of the file `path`.
class Recipe {
 public:
  Recipe(std::string path, CLI::App& app) : path_(std::move(path)), app_(app) {
    for (CLI::Option* option : app.get_options()) {
      if (option->count() != 0) named_.insert(option);
    }
  }

  Status apply(const Json& recipe, std::vector<SchemeRule>& rules) const {
    if (!recipe.is_object()) return wrong("a recipe is an object of options", "", recipe.type_name(), "object");
    for (const auto& [key, value] : recipe.items()) {
      const Status done = key == "schemes" ? read_rules(value, rules) : apply_option(key, value);
      if (!done) return done;
    }
    return {};
  }

 private:
  [[nodiscard]] Error wrong(const char* what, std::string_view key, ErrorText got = {}, ErrorText wanted = {}) const {
    ErrorText where;
    if (!key.empty()) where << key.substr(0, 48) << " in ";
    return {Errc::bad_file, what, where << path_, got, wanted};
  }

  // Another option that says the same thing in another way and has a value.
  [[nodiscard]] static const CLI::Option* rival(const CLI::Option& option) {
    for (const CLI::Option* other : option.get_excludes()) {
      if (other->count() != 0) return other;
    }
    return nullptr;
  }

  Status apply_option(const std::string& key, const Json& value) const {
    CLI::Option* const option = app_.get_option_no_throw("--" + key);
    if (option == nullptr || option == app_.get_help_ptr() || key == "recipe") {
      return wrong("an option that the command does not have", key);
    }
    std::vector<std::string> values;
    if (const Status read = read_values(key, kind_of(*option), value, values); !read) return read;
    if (value.is_array() && option->get_items_expected_max() < 2) {
      return wrong("an option with one value", key, "a list");
    }
    if (named_.contains(option) || values.empty()) return {};
    if (const CLI::Option* other = rival(*option); other != nullptr) {
      if (named_.contains(other)) return {};
      return wrong("an option that another one excludes", key, "", ErrorText("without ") << other->get_name());
    }
    try {
      for (const std::string& text : values) option->add_result(text);
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      const std::string_view reason = error.what();
      return wrong("a value that the option refuses", key, reason.substr(0, reason.find('\n')));
    }
    return {};
  }

  // The values as a command line has them: none for a flag that is not set.
  Status read_values(const std::string& key, Kind kind, const Json& value, std::vector<std::string>& values) const {
    if (value.is_array()) {
      for (const Json& entry : value) {
        if (const Status read = read_values(key, kind, entry, values); !read) return read;
      }
      if (values.empty()) return wrong("a list without values", key);
      return {};
    }
    constexpr const char* wanted[] = {"true or false", "a number", "text"};
    const bool fits = kind == Kind::flag     ? value.is_boolean()
                      : kind == Kind::number ? value.is_number()
                                             : value.is_string();
    if (!fits) return wrong("a value of the wrong type", key, value.type_name(), wanted[static_cast<int>(kind)]);
    if (kind == Kind::text) values.push_back(value.get<std::string>());
    if (kind == Kind::number) values.push_back(value.dump());
    if (kind == Kind::flag && value.get<bool>()) values.emplace_back("true");
    return {};
  }

  Status read_rules(const Json& list, std::vector<SchemeRule>& rules) const {
    if (!list.is_array()) return wrong("a value of the wrong type", "schemes", list.type_name(), "a list");
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::string entry = "schemes[" + std::to_string(i) + "]";
      if (!list[i].is_object()) return wrong("a value of the wrong type", entry, list[i].type_name(), "an object");
      SchemeRule rule;
      std::string scheme;
      for (const auto& [key, value] : list[i].items()) {
        std::string* const member = key == "pattern" ? &rule.pattern : key == "scheme" ? &scheme : nullptr;
        if (member == nullptr) return wrong("an unknown key", entry + "." + key, "", "pattern and scheme");
        if (!value.is_string()) {
          return wrong("a value of the wrong type", entry + "." + key, value.type_name(), "text");
        }
        *member = value.get<std::string>();
      }
      if (list[i].size() != 2) return wrong("a key is missing", entry, "", "pattern and scheme");
      const Result<cbq::Scheme> parsed = cbq::parse_scheme(scheme.c_str());
      if (!parsed) return wrong(parsed.error().what, entry + ".scheme", scheme, parsed.error().wanted);
      rule.scheme = *parsed;
      rules.push_back(std::move(rule));
    }
    return {};
  }

  std::string path_;
  CLI::App& app_;
  std::set<const CLI::Option*> named_;  // by the command line
};

}  // namespace

Status apply_recipe(const std::string& path, CLI::App& app, std::vector<SchemeRule>& rules) {
  const Result<Json> recipe = cbq::read_json_file(path, limits);
  if (!recipe) return recipe.error();
  return Recipe(path, app).apply(*recipe, rules);
}

}  // namespace cbq_llama
