package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/volume"
)

// maxEnvFile is how large a file of variables may be, in bytes.
const maxEnvFile = 1 << 20

// fileValue reads a variable from a file that another container of the pod has
// left in a volume; false means: leave the variable out.
func (e env) fileValue(ref *v1.FileKeySelector) (string, bool, error) {
	v, ok := e.volume(ref.VolumeName)
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	optional := ref.Optional != nil && *ref.Optional
	b, err := volume.ReadFile(v.Path, ref.Path, maxEnvFile)
	if errors.Is(err, fs.ErrNotExist) && optional {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: file %q of volume %q: %w", ref.Path, ref.VolumeName, err)
	}
	value, found, err := fromEnvFile(string(b), ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: file %q of volume %q: %w", ref.Path, ref.VolumeName, err)
	}
	if !found && !optional {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q of volume %q", ref.Key, ref.Path, ref.VolumeName)
	}
	return value, found, nil
}

// fromEnvFile looks a key up in lines of KEY='value'. Values stand in single
// quotes, which nothing escapes and which may hold line breaks; blank lines and
// comments, also behind a value, are skipped. As for a shell, blanks between the
// equals sign and the quote make the value empty. The file is read up to the key.
func fromEnvFile(text, key string) (value string, found bool, err error) {
	number := 0
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		number++
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		bad := func(what string) error { return fmt.Errorf("line %d: %s", number, what) }
		name, rest, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return "", false, bad("missing '='")
		case strings.Trim(name, " \t") == "":
			return "", false, bad("no name before '='")
		case strings.TrimRight(name, " \t") != name:
			return "", false, bad("white space before '='")
		case strings.HasPrefix(rest, " "), strings.HasPrefix(rest, "\t"):
			if name == key {
				return "", true, nil
			}
			continue
		case !strings.HasPrefix(rest, "'"):
			return "", false, bad("the value must be in single quotes")
		}
		rest = rest[1:]
		at := number
		for !strings.Contains(rest, "'") {
			if text == "" {
				return "", false, fmt.Errorf("line %d: the single quote is not closed", at)
			}
			line, text, _ = strings.Cut(text, "\n")
			number++
			rest += "\n" + strings.TrimSuffix(line, "\r")
		}
		value, rest, _ = strings.Cut(rest, "'")
		if rest = strings.TrimLeft(rest, " \t"); rest != "" && rest[0] != '#' {
			return "", false, bad("unexpected text behind the closing quote")
		}
		if name == key {
			return value, true, nil
		}
	}
	return "", false, nil
}
