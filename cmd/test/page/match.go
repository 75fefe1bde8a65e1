package page

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// Any stands for any text.
const Any = "…"

var (
	gaps  = regexp.MustCompile(`[ \t]+`)
	times = regexp.MustCompile(`\b[0-9]+(\.[0-9]+)?(ns|µs|ms|s|m|h|d|y)([0-9]+(\.[0-9]+)?(m|s|ms))*\b`)
	sizes = regexp.MustCompile(`\b[0-9]+(\.[0-9]+)? ?([kKMGT]i?B?|B)\b`)
	lines = regexp.MustCompile(`-{3,}`)
	words = regexp.MustCompile(`[A-Za-z0-9]{8,}`)
	// Names of hosts, versions and addresses are chosen, other numbers are not.
	digits = regexp.MustCompile(`\b(server|agent)-[0-9]+\b|[0-9]+(\.[0-9]+){2,}|[0-9]+(\.[0-9]+)?`)
	chosen = regexp.MustCompile(`^[a-z]|\..*\.`)
)

// normal is a line without what differs from one run to the next.
func normal(line string) string {
	line = strings.TrimSpace(gaps.ReplaceAllString(lines.ReplaceAllString(line, "---"), " "))
	line = words.ReplaceAllStringFunc(line, func(w string) string {
		if isRandom(w) {
			return "ID"
		}
		return w
	})
	line = times.ReplaceAllString(line, "TIME")
	line = sizes.ReplaceAllString(line, "SIZE")
	return digits.ReplaceAllStringFunc(line, func(n string) string {
		if chosen.MatchString(n) {
			return n
		}
		return "0"
	})
}

// isRandom says that nobody chose a word of eight letters or more, so far as one
// can see: it has digits, or only capitals.
func isRandom(w string) bool {
	return strings.ContainsFunc(w, unicode.IsDigit) || strings.ToUpper(w) == w
}

// Match says where output is not what the page shows.
func Match(shown []string, output string) error {
	pattern := strings.Builder{}
	pattern.WriteString(`\A`)
	for _, line := range trim(shown) {
		if strings.TrimSpace(line) == Any {
			pattern.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		parts := strings.Split(normal(line), Any)
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern.WriteString(strings.Join(parts, `[^\n]*`) + `\n`)
	}
	pattern.WriteString(`\z`)
	var got strings.Builder
	for _, line := range trim(strings.Split(output, "\n")) {
		got.WriteString(normal(line) + "\n")
	}
	re, err := regexp.Compile(pattern.String())
	if err != nil {
		return fmt.Errorf("the page's output: %w", err)
	}
	if !re.MatchString(got.String()) {
		return fmt.Errorf("the page shows:\n%s\nthe command printed:\n%s", strings.Join(trim(shown), "\n"), strings.TrimSpace(output))
	}
	return nil
}

// trim drops empty lines at both ends.
func trim(lines []string) []string {
	for len(lines) > 0 && strings.TrimSpace(lines[0]) == "" {
		lines = lines[1:]
	}
	for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}
