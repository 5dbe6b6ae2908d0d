/* The way back from the table: --help, configs/reference.yaml, and a configuration as YAML. */
#include "core/config.h"
#include "core/config_parts.h"

#include "core/arena.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Words of text from column `indent` on, at most 100 columns; each new line starts with lead. The first line is begun.
 */
static void wrap(FILE *f, const char *text, int indent, const char *lead) {
    int col = indent;
    for (const char *p = text; *p;) {
        int n = (int)strcspn(p, " ");
        if (col > indent && col + 1 + n > 100)
            fprintf(f, "\n%s%*s", lead, indent - (int)strlen(lead), ""), col = indent;
        else if (col > indent)
            fputc(' ', f), col++;
        fprintf(f, "%.*s", n, p);
        col += n;
        p += n + (p[n] == ' ');
    }
    fputc('\n', f);
}

/* "number in (0, 1]; default 2e-4" */
static char *kind(const key_row *r) {
    char *want = key_row_expected(r), *text;
    if (r->def)
        text = xprintf("(%s; default %s)", want, r->def);
    else
        text = xprintf("(%s)", want);
    free(want);
    return text;
}

void config_help(FILE *f) {
    enum { INDENT = 32 };
    fprintf(f,
            "Keys of the YAML file; --key=value on the command line overrides one. An empty value is the default.\n");
    for (int i = 0; i < config_rows_n; i++) {
        const key_row *r = &config_rows[i];
        if (r->type == KEY_SECTION) {
            fprintf(f, "\n%s\n", r->name);
            continue;
        }
        char *k = kind(r);
        if (key_row_is_field(r))
            fprintf(f, "    - %-*s", INDENT - 6, strchr(r->name, '.') + 1);
        else
            fprintf(f, "  %-*s", INDENT - 2, r->name);
        wrap(f, r->help, INDENT, "");
        fprintf(f, "%*s", INDENT, "");
        wrap(f, k, INDENT, "");
        free(k);
    }
}

/* A field of an entry, so that taking away one # of each line gives an entry with its comments. */
static void reference_field(FILE *f, const key_row *r, const char *k, bool more) {
    const char *lead = more ? "#    # " : "#  # ";
    fputs(lead, f);
    wrap(f, r->help, (int)strlen(lead), lead);
    fprintf(f, "%s%s\n%s%s:\n", lead, k, more ? "#    " : "#  - ", strchr(r->name, '.') + 1);
}

void config_reference(FILE *f) {
    fprintf(f, "# Every key of the configuration with its default. Made from core/keys.def by\n"
               "#   build/tests/test_config --reference > configs/reference.yaml\n"
               "# A key that is left out or empty has its default. --key=value on the command line overrides a key.\n");
    for (int i = 0; i < config_rows_n; i++) {
        const key_row *r = &config_rows[i];
        if (r->type == KEY_SECTION) {
            fprintf(f, "\n# ---- %s ----\n", r->name);
            continue;
        }
        char *k = kind(r);
        if (key_row_is_field(r))
            reference_field(f, r, k, key_row_is_field(r - 1));
        else {
            fputs("\n# ", f);
            wrap(f, r->help, 2, "# ");
            fprintf(f, "# %s\n%s:%s%s\n", k, r->name, r->def ? " " : "", r->def ? r->def : "");
        }
        free(k);
    }
}

/* ---- a configuration ---- */

/* In single quotes nothing is special but the quote itself, unless there are control bytes. */
static void print_string(FILE *f, const char *s) {
    bool control = false;
    for (const char *p = s; *p; p++) control |= (unsigned char)*p < 0x20 || *p == 0x7f;
    fputc(control ? '"' : '\'', f);
    for (const char *p = s; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (!control && c == '\'')
            fputs("''", f);
        else if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\x%02x", c);
        else if (control && (c == '"' || c == '\\'))
            fprintf(f, "\\%c", c);
        else if (control && c == '$')
            fputs("\\x24", f); /* what follows it is no variable to expand */
        else
            fputc(c, f);
    }
    fputc(control ? '"' : '\'', f);
}

static void print_real(FILE *f, double x) {
    char text[32];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    fprintf(f, " %s", text);
}

static void print_strings(FILE *f, const string_list *s) {
    if (!s->n) return;
    fputs(s->scalar ? " " : " [", f);
    for (int i = 0; i < s->n; i++) {
        if (i) fputs(", ", f);
        print_string(f, s->item[i]);
    }
    if (!s->scalar) fputc(']', f);
}

static void print_datasets(FILE *f, const dataset_list *d) {
    for (int i = 0; i < d->n; i++) {
        const char *lead = "\n  - ";
        for (int k = 0; k < config_rows_n; k++) {
            const key_row *r = &config_rows[k];
            if (!key_row_is_field(r)) continue;
            const char *value = *(char *const *)((const char *)&d->item[i] + r->offset);
            if (!value) continue;
            fprintf(f, "%s%s: ", lead, strchr(r->name, '.') + 1);
            print_string(f, value);
            lead = "\n    ";
        }
    }
}

static void print_value(FILE *f, const key_row *r, const void *at) {
    if (r->type == KEY_INT || r->type == KEY_SIZE) {
        int64_t x = *(const int64_t *)at;
        if (x != CONFIG_UNSET) fprintf(f, " %" PRId64, x);
    } else if (r->type == KEY_REAL) {
        if (!isnan(*(const double *)at)) print_real(f, *(const double *)at);
    } else if (r->type == KEY_BOOL) {
        fprintf(f, " %s", *(const bool *)at ? "true" : "false");
    } else if (r->type == KEY_STRINGS) {
        print_strings(f, at);
    } else if (r->type == KEY_DATASETS) {
        print_datasets(f, at);
    } else if (*(char *const *)at) {
        fputc(' ', f);
        print_string(f, *(char *const *)at);
    }
}

/* Keys whose value an adapter directory decides; a default printed here would contradict it when read back. */
static bool from_adapter(const config *c, const key_row *r) {
    return c->lora_model_dir && !config_is_set(c, r->name) &&
           word_in(r->name, "lora_r|lora_alpha|lora_target_modules|lora_target_linear|peft_use_rslora");
}

void config_print(const config *c, FILE *f) {
    for (int i = 0; i < config_rows_n; i++) {
        const key_row *r = &config_rows[i];
        if (r->bit < 0) continue;
        fprintf(f, "%s:", r->name);
        if (from_adapter(c, r))
            fputs(" # from lora_model_dir", f);
        else
            print_value(f, r, (const char *)c + r->offset);
        fputc('\n', f);
    }
}

char *config_text(const config *c) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    config_print(c, f);
    fclose(f);
    return text;
}
