package backup

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// Create implements Place. Each part is sent with its MD5, which the service
// checks; afterwards size and checksum of the whole must be those of what was
// sent. Where the service's ETag is no MD5, as with some encryption at rest, the
// file is read back.
//
// An upload that ends early leaves parts at most, which are no object and are
// taken away at once, or by Sweep if this process died.
func (s *S3) Create(ctx context.Context, name string, content io.Reader) (err error) {
	key, err := s.key(name)
	if err == nil {
		err = s.fresh()
	}
	if err != nil {
		return err
	}
	switch _, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{}); {
	case err == nil:
		return fmt.Errorf("%s in %s %w", name, s, ErrExists)
	case !errors.Is(s.explain("", err), fs.ErrNotExist):
		return s.explain("look for "+name, err)
	}
	src := &sent{r: ctxReader{ctx, content}, partSize: int64(s.partSize), whole: md5.New(), part: md5.New(), sha: sha256.New()}
	if err := s.put(ctx, key, src); err != nil {
		if src.err != nil {
			return src.err
		}
		return s.explain("store "+name, err)
	}
	if err := s.same(ctx, key, src); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if rerr := s.core.RemoveObject(undo, s.bucket, key, minio.RemoveObjectOptions{}); rerr != nil {
			err = fmt.Errorf("%w; it could not be removed either: %w", err, rerr)
		}
		return err
	}
	return nil
}

// put sends what fits into one part as one request, and else part by part.
func (s *S3) put(ctx context.Context, key string, src *sent) error {
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, PartSize: uint64(s.partSize)}
	first := &bytes.Buffer{}
	_, err := io.CopyN(first, src, int64(s.partSize))
	switch {
	case err == io.EOF:
		_, err = s.core.Client.PutObject(ctx, s.bucket, key, first, int64(first.Len()), o)
	case err == nil:
		// Google takes it as one stream, which the library can't sum up before.
		o.SendContentMd5 = !s3utils.IsGoogleEndpoint(*s.core.EndpointURL())
		_, err = s.core.Client.PutObject(ctx, s.bucket, key, io.MultiReader(first, src), -1, o)
	}
	return err
}

// same compares what is stored with what was sent.
func (s *S3) same(ctx context.Context, key string, src *sent) error {
	st, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return s.explain("verify "+key, err)
	}
	if st.Size != src.n {
		return fmt.Errorf("verify %s in %s: it has %d bytes, %d were sent", key, s, st.Size, src.n)
	}
	if src.isETag(strings.Trim(st.ETag, `"`)) {
		return nil
	}
	r, _, _, err := s.core.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return s.explain("read back "+key, err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return s.explain("read back "+key, err)
	}
	if !bytes.Equal(h.Sum(nil), src.sha.Sum(nil)) {
		return fmt.Errorf("verify %s in %s: it is not what was sent", key, s)
	}
	return nil
}

// Sweep takes away the parts of uploads that began before a time and were never
// completed, of files that skiff named for the cluster.
func (s *S3) Sweep(ctx context.Context, clusterID string, before time.Time) error {
	if err := s.fresh(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for u := range s.core.Client.ListIncompleteUploads(ctx, s.bucket, s.prefix, false) {
		if u.Err != nil {
			return s.explain("list unfinished uploads", u.Err)
		}
		n, ours := ParseName(strings.TrimPrefix(u.Key, s.prefix))
		if !ours || n.Cluster != ShortID(clusterID) || !u.Initiated.Before(before) {
			continue
		}
		if err := s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID); err != nil {
			return s.explain("remove an unfinished upload", err)
		}
	}
	return nil
}

// sent sums up what is read from r.
type sent struct {
	r        io.Reader
	partSize int64
	n        int64
	err      error // of r

	whole, part, sha hash.Hash
	parts            []byte // MD5s of the full parts
}

func (c *sent) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	c.whole.Write(p[:n])
	c.sha.Write(p[:n])
	for b := p[:n]; len(b) > 0; {
		k := min(int64(len(b)), c.partSize-c.n%c.partSize)
		c.part.Write(b[:k])
		c.n += k
		b = b[k:]
		if c.n%c.partSize == 0 {
			c.parts = c.part.Sum(c.parts)
			c.part.Reset()
		}
	}
	return n, err
}

// isETag says whether e is what services give to an object: the MD5 of its
// bytes, or that of its parts' MD5s with their number.
func (c *sent) isETag(e string) bool {
	if e == hex.EncodeToString(c.whole.Sum(nil)) {
		return true
	}
	parts := bytes.Clone(c.parts)
	if c.n%c.partSize != 0 {
		parts = c.part.Sum(parts)
	}
	sum := md5.Sum(parts)
	return e == fmt.Sprintf("%x-%d", sum, len(parts)/md5.Size)
}
