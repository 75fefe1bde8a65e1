package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
	"github.com/skiff-sh/skiff/cluster/upgrade/skew"
)

func sourceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "binary", Usage: "program file of the version to go to; its signature is looked for beside it, in FILE.minisig", EnvVars: env("binary")},
		&cli.StringFlag{Name: "version", Usage: "version to go to, with --from"},
		&cli.StringFlag{Name: "from", Usage: "URL of programs, with {version}, {os} and {arch} in it; beside the program there has to be a file SHA256SUMS, or one named like it with .sha256, and there may be one with .minisig", EnvVars: env("from")},
		&cli.StringFlag{Name: "sha256", Usage: "what the SHA-256 of the program has to be, in hex", EnvVars: env("sha256")},
		&cli.BoolFlag{Name: "drain", Usage: "move the pods away from each host before its program changes", EnvVars: env("drain")},
		&cli.IntFlag{Name: "max-unavailable", Usage: "agents that change at a time", Value: 1, EnvVars: env("max-unavailable")},
		&cli.BoolFlag{Name: "ignore-dead", Usage: "leave out members that are dead", EnvVars: env("ignore-dead")},
		&cli.BoolFlag{Name: "allow-interruption", Usage: "go on where writes stop while a server changes, as with two servers", EnvVars: env("allow-interruption")},
		&cli.DurationFlag{Name: "trial", Usage: "how long a new program has to become healthy before the host goes back", Value: upgrade.DefaultTrial, EnvVars: env("trial")},
	}
}

// program is a program file that a roll-out could bring.
type program struct {
	upgrade.Binary
	path      string
	temporary bool
}

func (p *program) close() {
	if p.temporary {
		os.Remove(p.path)
	}
}

// findProgram gets the program that the flags name, and describes it.
func findProgram(c *cli.Context) (*program, error) {
	file, version, from := c.String("binary"), c.String("version"), c.String("from")
	sum := strings.ToLower(c.String("sha256"))
	if b, err := hex.DecodeString(sum); sum != "" && (err != nil || len(b) != 32) {
		return nil, usagef("--sha256 %q: want 64 digits of hex", sum)
	}
	switch {
	case file != "" && (version != "" || from != ""):
		return nil, usagef("--binary excludes --version and --from")
	case file == "" && version == "":
		return nil, usagef("which version to go to? --binary FILE, or --version V --from URL")
	case file == "" && from == "":
		return nil, usagef("--version needs --from URL (with {version}, {os} and {arch} in it): no place is known where programs of skiff are kept")
	}
	p := &program{}
	if file != "" {
		var err error
		if p.path, err = filepath.Abs(file); err != nil {
			return nil, err
		}
	} else {
		if _, err := skew.Parse(version); err != nil {
			return nil, usagef("--version %v", err)
		}
		var err error
		if p, err = downloadProgram(c.Context, strings.TrimPrefix(version, "v"), from, sum); err != nil {
			return nil, err
		}
	}
	if err := p.describe(c.Context, sum); err != nil {
		p.close()
		return nil, err
	}
	if file == "" && p.Version != strings.TrimPrefix(version, "v") {
		p.close()
		return nil, fmt.Errorf("the program from %s is version %s, not %s", from, p.Version, version)
	}
	return p, nil
}

func (p *program) describe(ctx context.Context, sum string) (err error) {
	if sum != "" && !p.temporary { // before it runs
		have, err := binary.Sum(p.path)
		if err == nil && have != sum {
			err = fmt.Errorf("%s has the SHA-256 %s, not that of --sha256", p.path, have)
		}
		if err != nil {
			return err
		}
	}
	signature := p.Signature
	if p.Binary, err = binary.Describe(ctx, p.path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return usagef("--binary: %v", err)
		}
		return err
	}
	if p.Signature = signature; p.temporary {
		return nil
	}
	p.Signature, err = os.ReadFile(p.path + ".minisig")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const (
	downloadSilence = 30 * time.Second // without a byte
	maxSums         = 1 << 20
	maxProgram      = 1 << 30
)

// downloadProgram gets a program into a temporary file, with what is beside it.
func downloadProgram(ctx context.Context, version, template, sum string) (_ *program, err error) {
	target := strings.NewReplacer("{version}", version, "{os}", runtime.GOOS, "{arch}", runtime.GOARCH).Replace(template)
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || path.Base(u.Path) == "/" || path.Base(u.Path) == "." {
		return nil, usagef("--from %q: want http://HOST/PATH or https://HOST/PATH of a program", template)
	}
	if sum == "" {
		if sum, err = publishedSum(ctx, u); err != nil {
			return nil, err
		}
	}
	signature, err := fetchSmall(ctx, u.String()+".minisig")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.CreateTemp("", "skiff-download-")
	if err != nil {
		return nil, err
	}
	p := &program{path: f.Name(), temporary: true}
	p.Signature = signature
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			p.close()
		}
	}()
	if err := f.Chmod(0o700); err != nil {
		return nil, err
	}
	b := newBar(path.Base(u.Path))
	defer b.done()
	err = fetchURL(ctx, u.String(), func(body io.ReadCloser, size int64) error {
		n, err := io.Copy(f, io.LimitReader(&counted{ReadCloser: body, tell: func(n int64) { b.set(n, size) }}, maxProgram+1))
		if err == nil && n > maxProgram {
			err = fmt.Errorf("it has more than %d bytes", maxProgram)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	have, err := binary.Sum(p.path)
	if err == nil && have != sum {
		err = fmt.Errorf("%s has the SHA-256 %s, and should have %s: it is not used", u, have, sum)
	}
	return p, err
}

// publishedSum reads the sum beside the program: SHA256SUMS, or its name with
// .sha256.
func publishedSum(ctx context.Context, u *url.URL) (string, error) {
	name := path.Base(u.Path)
	sums := *u
	sums.Path = path.Join(path.Dir(u.Path), "SHA256SUMS")
	for _, at := range []string{sums.String(), u.String() + ".sha256"} {
		b, err := fetchSmall(ctx, at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		lines := bufio.NewScanner(strings.NewReader(string(b)))
		for lines.Scan() {
			words := strings.Fields(lines.Text())
			if len(words) == 0 || len(words) == 2 && strings.TrimPrefix(words[1], "*") != name {
				continue
			}
			if sum, err := hex.DecodeString(words[0]); err == nil && len(sum) == 32 {
				return strings.ToLower(words[0]), nil
			}
		}
		return "", fmt.Errorf("%s says nothing of %s", at, name)
	}
	return "", fmt.Errorf("there is neither a file SHA256SUMS nor %s.sha256 beside %s: name its sum with --sha256", name, u)
}

// fetchSmall is fs.ErrNotExist where there is nothing.
func fetchSmall(ctx context.Context, at string) (out []byte, err error) {
	err = fetchURL(ctx, at, func(body io.ReadCloser, _ int64) error {
		out, err = io.ReadAll(io.LimitReader(body, maxSums))
		return err
	})
	return out, err
}

func fetchURL(ctx context.Context, at string, use func(body io.ReadCloser, size int64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(downloadSilence, func() { cancel(fmt.Errorf("nothing came for %s", downloadSilence)) })
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("download %s: %w", at, fs.ErrNotExist)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("download %s: %s", at, resp.Status)
	}
	if err := use(&counted{ReadCloser: resp.Body, tell: func(int64) { watch.Reset(downloadSilence) }}, resp.ContentLength); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("download %s: %w", at, err)
	}
	return nil
}
