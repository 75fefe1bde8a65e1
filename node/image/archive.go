package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// blobs are the files of an archive or layout directory.
type blobs interface {
	open(name string) (io.ReadCloser, int64, error) // fs.ErrNotExist when missing
}

// Import loads every image of an archive (docker save or OCI layout, as plain
// or compressed tar) or of an OCI layout directory, and pins them.
//
// An image that the archive gives no name, or only a tag, is named after the
// file: app.tar -> docker.io/library/app:latest.
func (s *Store) Import(ctx context.Context, file string, progress ProgressFunc) ([]*Image, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if fi.IsDir() {
		return s.importBlobs(ctx, file, dirBlobs(file), progress)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer f.Close()
	return s.importFile(ctx, file, f, progress)
}

// ImportReader is Import from a stream; name is used in messages and for
// images without a name.
func (s *Store) ImportReader(ctx context.Context, name string, r io.Reader, progress ProgressFunc) ([]*Image, error) {
	f, err := s.spool(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	defer f.Close()
	return s.importFile(ctx, name, f, progress)
}

// spool copies a stream to a file that nobody else sees.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(s.path("tmp"), "import-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := io.Copy(f, ctxReader{ctx, r}); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

func notArchive(name, format string, args ...any) error {
	return fmt.Errorf("%s is no image archive: %s (%w)", name, fmt.Sprintf(format, args...), ErrNotArchive)
}

func (s *Store) importFile(ctx context.Context, name string, f *os.File, progress ProgressFunc) ([]*Image, error) {
	magic := make([]byte, magicLen)
	n, err := f.ReadAt(magic, 0)
	if n == 0 {
		return nil, notArchive(name, "it is empty")
	}
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	kind, err := compression(magic[:n])
	if err != nil {
		return nil, notArchive(name, "it is %v", err)
	}
	if kind != "" {
		// A compressed tar cannot be jumped about in; decompress it once.
		zr, err := decompress(io.NewSectionReader(f, 0, 1<<62))
		if err != nil {
			return nil, notArchive(name, "%v", err)
		}
		g, err := s.spool(ctx, zr)
		zr.Close()
		if err != nil {
			return nil, notArchive(name, "it cannot be decompressed: %v", err)
		}
		defer g.Close()
		f = g
	}
	b, err := indexTar(f)
	if err != nil {
		return nil, notArchive(name, "%v", err)
	}
	return s.importBlobs(ctx, name, b, progress)
}

func (s *Store) importBlobs(ctx context.Context, name string, b blobs, progress ProgressFunc) ([]*Image, error) {
	base := baseName(name)
	sources, err := dockerSources(b, base)
	if errors.Is(err, fs.ErrNotExist) {
		sources, err = ociSources(b, base)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notArchive(name, "it has neither manifest.json (docker save) nor index.json (OCI layout)")
	}
	if err != nil {
		return nil, notArchive(name, "%v", err)
	}
	if len(sources) == 0 {
		return nil, notArchive(name, "it holds no image for %s/%s", platform().OS, platform().Architecture)
	}
	unlock, err := s.pulling()
	if err != nil {
		return nil, err
	}
	defer unlock()
	t := newTracker(name, progress)
	var out []*Image
	for _, src := range sources {
		img, err := s.add(ctx, src, true, t)
		if err != nil {
			return out, fmt.Errorf("import %s: %w", name, err)
		}
		out = append(out, img)
	}
	t.report("", "Done", 0, 0)
	return out, nil
}

// baseName makes a repository name from a file name.
func baseName(file string) string {
	n := strings.ToLower(filepath.Base(file))
	for _, ext := range []string{".gz", ".tgz", ".zst", ".zstd", ".tar", ".oci", ".docker"} {
		n = strings.TrimSuffix(n, ext)
	}
	n = strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-._", r) {
			return r
		}
		return '-'
	}, n)
	n = strings.Trim(n, "-._")
	if _, err := Normalize(n + ":latest"); err != nil {
		return "imported"
	}
	return n
}

// maxDocument bounds the JSON documents of an archive.
const maxDocument = 16 << 20

func readBlob(b blobs, name string) ([]byte, error) {
	rc, size, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, too many for such a document", name, size)
	}
	return io.ReadAll(rc)
}

func missing(name string) error { return fmt.Errorf("%s is missing in it", name) }

func fileLayer(b blobs, name string) (layerSource, error) {
	rc, size, err := b.open(name)
	if err != nil {
		return layerSource{}, missing(name)
	}
	rc.Close()
	return layerSource{size: size, open: func(context.Context) (io.ReadCloser, error) {
		rc, _, err := b.open(name)
		return rc, err
	}}, nil
}

// dockerSources reads what docker save wrote.
func dockerSources(b blobs, base string) ([]*source, error) {
	raw, err := readBlob(b, "manifest.json")
	if err != nil {
		return nil, err
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	var out []*source
	for _, m := range manifest {
		cfg, err := readBlob(b, m.Config)
		if err != nil {
			return nil, missing(m.Config)
		}
		sum := sha256.Sum256(cfg)
		src := &source{id: "sha256:" + hex.EncodeToString(sum[:]), config: cfg}
		for _, l := range m.Layers {
			ls, err := fileLayer(b, l)
			if err != nil {
				return nil, err
			}
			src.layers = append(src.layers, ls)
		}
		for _, tag := range m.RepoTags {
			full, err := Normalize(tag)
			if err != nil {
				return nil, err
			}
			src.tags = append(src.tags, full)
		}
		if len(src.tags) == 0 {
			full, err := Normalize(base + ":latest")
			if err != nil {
				return nil, err
			}
			src.tags = []string{full}
		}
		out = append(out, src)
	}
	return out, nil
}

// Annotations that name an image in an OCI layout.
const (
	refNameAnnotation    = "org.opencontainers.image.ref.name"
	containerdAnnotation = "io.containerd.image.name"
)

// ociSources reads an OCI image layout.
func ociSources(b blobs, base string) ([]*source, error) {
	raw, err := readBlob(b, "index.json")
	if err != nil {
		return nil, err
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var out []*source
	byID := map[string]*source{}
	for _, d := range idx.Manifests {
		src, err := ociSource(b, d, 0)
		if err != nil {
			return nil, err
		}
		if src == nil {
			continue // another platform, or no image
		}
		tag, err := layoutName(d.Annotations, base)
		if err != nil {
			return nil, err
		}
		named, err := repository(tag)
		if err != nil {
			return nil, err
		}
		digest := named.String() + "@" + d.Digest.String()
		if have := byID[src.id]; have != nil { // one image with several names
			have.tags, have.digests = union(have.tags, []string{tag}), union(have.digests, []string{digest})
			continue
		}
		src.tags, src.digests = []string{tag}, []string{digest}
		byID[src.id] = src
		out = append(out, src)
	}
	return out, nil
}

// layoutName is the normalized name of a layout's image.
func layoutName(ann map[string]string, base string) (string, error) {
	if n := ann[containerdAnnotation]; n != "" {
		return Normalize(n)
	}
	n := ann[refNameAnnotation]
	switch {
	case n == "":
		n = base + ":latest"
	case !strings.ContainsAny(n, "/:@"): // a tag alone
		n = base + ":" + n
	}
	return Normalize(n)
}

const maxNesting = 4

// ociSource follows a descriptor to the image for this platform; nil when there is none.
func ociSource(b blobs, d v1.Descriptor, depth int) (*source, error) {
	if p := d.Platform; p != nil && p.OS != "" && (p.OS != platform().OS || p.Architecture != platform().Architecture) {
		return nil, nil
	}
	raw, err := verifiedBlob(b, d.Digest)
	if err != nil {
		return nil, err
	}
	var doc struct {
		MediaType string          `json:"mediaType"`
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if doc.Manifests != nil {
		if depth == maxNesting {
			return nil, errors.New("its index is nested too deeply")
		}
		for _, m := range doc.Manifests {
			src, err := ociSource(b, m, depth+1)
			if src != nil || err != nil {
				return src, err
			}
		}
		return nil, nil
	}
	if doc.Config == nil || !isImageConfig(string(doc.Config.MediaType)) {
		return nil, nil // an artifact, such as an attestation
	}
	cfg, err := verifiedBlob(b, doc.Config.Digest)
	if err != nil {
		return nil, err
	}
	var parsed v1.ConfigFile
	if err := json.Unmarshal(cfg, &parsed); err != nil {
		return nil, fmt.Errorf("image configuration %s: %w", doc.Config.Digest, err)
	}
	if d.Platform == nil && parsed.Architecture != "" && (parsed.Architecture != platform().Architecture || parsed.OS != platform().OS) {
		return nil, nil
	}
	src := &source{id: doc.Config.Digest.String(), config: cfg}
	for _, l := range doc.Layers {
		ls, err := fileLayer(b, blobName(l.Digest))
		if err != nil {
			return nil, err
		}
		src.layers = append(src.layers, ls)
	}
	return src, nil
}

func isImageConfig(mediaType string) bool {
	return mediaType == "application/vnd.oci.image.config.v1+json" || mediaType == "application/vnd.docker.container.image.v1+json"
}

func blobName(d v1.Hash) string { return path.Join("blobs", d.Algorithm, d.Hex) }

// verifiedBlob reads a document and checks its digest.
func verifiedBlob(b blobs, d v1.Hash) ([]byte, error) {
	if err := checkDigest(d.String()); err != nil {
		return nil, err
	}
	raw, err := readBlob(b, blobName(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(blobName(d))
	}
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != d.Hex {
		return nil, fmt.Errorf("%s is damaged: its content has another digest", blobName(d))
	}
	return raw, nil
}

// dirBlobs are the files of a directory. Links do not lead outside.
type dirBlobs string

func (d dirBlobs) open(name string) (io.ReadCloser, int64, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	f, err := root.Open(filepath.FromSlash(path.Clean(name)))
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, 0, errors.Join(err, fs.ErrNotExist)
	}
	return f, fi.Size(), nil
}

// tarBlobs are the files of a tar, found by position.
type tarBlobs struct {
	f     *os.File
	files map[string]tarFile
}

type tarFile struct {
	offset, size int64
	link         string // another file's name
}

// indexTar notes where a tar's files lie.
func indexTar(f *os.File) (*tarBlobs, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	b := &tarBlobs{f: f, files: map[string]tarFile{}}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if len(b.files) == 0 {
				return nil, fmt.Errorf("it is not a tar file (%w)", err)
			}
			return nil, fmt.Errorf("it is cut off or damaged (%w)", err)
		}
		pos, err := f.Seek(0, io.SeekCurrent) // the reader does not read ahead
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			b.files[name] = tarFile{offset: pos, size: h.Size}
		case tar.TypeSymlink:
			b.files[name] = tarFile{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			b.files[name] = tarFile{link: path.Clean(h.Linkname)}
		}
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for name, tf := range b.files {
		if tf.offset+tf.size > fi.Size() {
			return nil, fmt.Errorf("it is cut off within %s", name)
		}
	}
	if len(b.files) == 0 {
		return nil, errors.New("it is not a tar file, or has no files")
	}
	return b, nil
}

func (b *tarBlobs) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	tf, ok := b.files[name]
	for range maxNesting {
		if ok && tf.link != "" {
			tf, ok = b.files[tf.link]
		}
	}
	if !ok || tf.link != "" {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(b.f, tf.offset, tf.size)), tf.size, nil
}

// ImportDir imports the archives in a folder, skipping those imported before
// and unchanged since. It goes on after errors and returns them joined. A
// missing folder holds nothing.
func (s *Store) ImportDir(ctx context.Context, dir string, progress ProgressFunc) ([]*Image, error) {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var out []*Image
	var errs []error
	for _, e := range ents {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		p := filepath.Join(dir, e.Name())
		fi, err := os.Stat(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		mark := fmt.Sprintf("%d %d", fi.Size(), fi.ModTime().UnixNano())
		idx, err := s.read()
		if err != nil {
			return out, err
		}
		if idx.Imported[p] == mark {
			continue
		}
		imgs, err := s.Import(ctx, p, progress)
		out = append(out, imgs...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = s.update(func(idx *index) error {
			if idx.Imported == nil {
				idx.Imported = map[string]string{}
			}
			idx.Imported[p] = mark
			return nil
		})
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// ImportImage takes an image made by this program. name is used in messages.
func (s *Store) ImportImage(ctx context.Context, img v1.Image, tags []string, pinned bool) (*Image, error) {
	src, err := builtSource(img)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	for _, tag := range tags {
		full, err := Normalize(tag)
		if err != nil {
			return nil, err
		}
		if n, err := reference.ParseNormalizedNamed(full); err != nil || reference.IsNameOnly(n) {
			return nil, fmt.Errorf("%w: %q has no tag", ErrInvalidName, tag)
		}
		src.tags = append(src.tags, full)
	}
	unlock, err := s.pulling()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.add(ctx, src, pinned, newTracker(strings.Join(tags, " "), nil))
}

// builtSource describes an image whose layers are at hand uncompressed.
func builtSource(img v1.Image) (*source, error) {
	cfg, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	id, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	src := &source{id: id.String(), config: cfg}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		src.layers = append(src.layers, layerSource{open: func(context.Context) (io.ReadCloser, error) { return l.Uncompressed() }})
	}
	return src, nil
}
