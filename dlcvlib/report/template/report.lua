-- Turns the document's tree (see render.py) into what each format needs. It holds no raw HTML or
-- Typst, so that only this filter writes any.

local html = FORMAT:match("html")
local typst = FORMAT:match("typst")

-- The document without its parts, which Typst's errors can be traced to. A name is there once; a
-- link leads to the web or to what is there, and a picture of the web is a link. A citation's link
-- has the cited work as its title.
local function join(doc)
  local blocks, targets, repeated, works = pandoc.List(), {}, {}, {}
  for number, part in ipairs(doc.blocks) do
    local refs = part.content[2]
    if refs and refs.identifier == "refs" then
      for _, work in ipairs(refs.content) do works["#" .. work.identifier] = pandoc.utils.stringify(work) end
    end
    if typst then blocks:insert(pandoc.RawBlock("typst", "// part " .. number)) end
    if part.classes:includes("failed") then blocks:insert(part) else blocks:extend(part.content) end
  end
  doc.blocks = blocks
  local function note(element)
    local id = element.identifier
    if not id or id == "" then return nil end
    while targets["#" .. element.identifier] do
      repeated[id] = (repeated[id] or 0) + 1
      element.identifier = id .. "-" .. repeated[id]
    end
    targets["#" .. element.identifier] = true
    return element
  end
  doc = doc:walk({ Block = note, Inline = note })
  return doc:walk({
    Link = function(link)
      local web = link.target:lower():match("^https?://") or link.target:lower():match("^mailto:")
      if not web and not targets[link.target] then return link.content end
      if works[link.target] then link.title = works[link.target] end
      return link
    end,
    Image = function(image)
      if image.src:match("^figures/[%w._-]+$") then return nil end
      if image.src:lower():match("^https?://") then
        local shown = #image.caption > 0 and image.caption or image.src
        return pandoc.Link(shown, image.src)
      end
      if image.title == "" then return image.caption end
      return pandoc.Span(image.caption .. { pandoc.Str(" [no picture in this project: " .. image.title .. "]") })
    end,
  })
end

local function typst_string(text)
  return '"' .. text:gsub("\\", "\\\\"):gsub('"', '\\"'):gsub("\n", " ") .. '"'
end

-- The name of a pair or a domain, such as usps->mnistm or MNIST-M.
local function on_one_line(str)
  if html then return pandoc.Span({ str }, { style = "white-space: nowrap" }) end
  if typst then return { pandoc.RawInline("typst", "#box["), str, pandoc.RawInline("typst", "]") } end
end

-- pandoc leaves text at the start of a table cell as it is, where Typst would see a heading or a
-- list in it.
local function Str(str)
  if str.text:match("^%W*%a+%->%a+%W*$") or str.text:match("MNIST%-M") then return on_one_line(str) end
  if not typst then return nil end
  local equals, rest = str.text:match("^(=+)(.*)$")
  if equals then return { pandoc.RawInline("typst", (equals:gsub("=", "\\="))), pandoc.Str(rest) } end
  if str.text:match("^[-+/]$") then return pandoc.RawInline("typst", "\\" .. str.text) end
  if str.text:match("^%d+%.$") then return pandoc.RawInline("typst", (str.text:gsub("%.", "\\."))) end
end

-- A formula's alternative text is its TeX.
local function Math(math)
  if not typst then return nil end
  local alt = "#[#set math.equation(alt: " .. typst_string(math.text) .. ");"
  return { pandoc.RawInline("typst", alt), math, pandoc.RawInline("typst", "]") }
end

-- A mean stays on one line with its deviation or interval, and a source with its target.
local function Inlines(inlines)
  local function is_sign(inline)
    local text = inline and inline.t == "Str" and inline.text or ""
    return text == "±" or text == "→" or text:match("^%[[+−]")
  end
  for i, inline in ipairs(inlines) do
    if inline.t == "Space" and (is_sign(inlines[i - 1]) or is_sign(inlines[i + 1])) then
      inlines[i] = pandoc.Str("\u{a0}")
    end
  end
  return inlines
end

-- Code: folded in HTML, cells that follow each other in one; left out of print.
local function Blocks(blocks)
  local found, folded = pandoc.List(), false
  local function fold(code)
    if html and code ~= folded then
      found:insert(pandoc.RawBlock("html", code and '<details class="code"><summary>Code</summary>' or "</details>"))
      folded = code
    end
  end
  for i, block in ipairs(blocks) do
    local code = block.t == "CodeBlock" and block.classes:includes("cell")
    fold(code)
    -- A notebook's question stays with its title, and both with what follows.
    local question = block.t == "Para" and #block.content == 1 and block.content[1].t == "Strong"
    if typst and question and i > 1 and blocks[i - 1].t == "Header" then
      found:extend({ pandoc.RawBlock("typst", "#block(sticky: true)["), block, pandoc.RawBlock("typst", "]") })
    elseif not (code and typst) then
      found:insert(block)
    end
  end
  fold(false)
  return found
end

local function bold(block)
  block.content = { pandoc.Strong(block.content) }
  return block
end

local LINE, CHARACTER, INSET = 465, 4.1, 8 -- of a table in report.typ, in points
local SMALL = "#show table: set text(6.4pt)\n#set table(inset: (x: 3pt, y: 1.6pt))\n"

-- Widths of columns in print. Where a table is too wide for the page, headings are wrapped, numbers
-- are not, and the other columns share what is left: the longer texts get as much as each other.
-- Returns whether that is so little that the table is to be set smaller.
local function set_widths(tbl, heads, rows)
  local LINE = tbl.classes:includes("small") and LINE * 8.5 / 6.4 or LINE
  local whole, need, want = {}, {}, {} -- with headings on one line; at least; what most cells need
  for i in ipairs(tbl.colspecs) do whole[i], need[i], want[i] = 0, 0, {} end
  local function width(text) -- in characters of a usual width
    return utf8.len(text) + 0.4 * select(2, text:gsub("%u", ""))
  end
  local function see(cells, head)
    for i, cell in ipairs(cells) do
      local text, longest = pandoc.utils.stringify(cell.contents), 0
      for word in text:gmatch("[^%s/]+") do longest = math.max(longest, width(word)) end
      local length, number = width(text), tbl.colspecs[i][1] == "AlignRight"
      whole[i] = math.max(whole[i], length)
      need[i] = math.max(need[i], number and not head and length or longest)
      table.insert(want[i], head and longest or length)
    end
  end
  for _, row in ipairs(heads) do see(row.cells, true) end
  for _, row in ipairs(rows) do see(row.cells, false) end
  for i, lengths in ipairs(want) do
    table.sort(lengths)
    want[i] = lengths[math.ceil(0.9 * #lengths)]
  end
  local function total(lengths, level)
    local sum = 0
    for i, length in ipairs(lengths) do
      sum = sum + INSET + CHARACTER * math.max(need[i], math.min(length, level))
    end
    return sum
  end
  local level, natural = 1000, total(whole, 1000) <= LINE
  while level > 0 and total(want, level) > LINE do level = level - 1 end
  local tight = level < 22
  if tight then
    LINE, level = LINE * 8.5 / 7.5, 1000
    while level > 0 and total(want, level) > LINE do level = level - 1 end
  end
  local line = math.max(LINE, total(want, level))
  tbl.colspecs = tbl.colspecs:map(function(spec, i)
    local length = math.max(need[i], math.min(want[i], level))
    return { spec[1], not natural and (INSET + CHARACTER * length) / line or nil }
  end)
  return tight
end

-- One heading over both ends of an interval, "… from" and "to".
local function join_intervals(row)
  local cells = pandoc.List()
  for _, cell in ipairs(row and row.cells or {}) do
    local last = cells[#cells]
    local before = last and last.contents[1] and last.contents[1].content
    local ends = before and #before > 1 and pandoc.utils.stringify(before[#before]) == "from"
    if ends and pandoc.utils.stringify(cell.contents) == "to" then
      before:remove(#before)
      last.contents[1].content, last.col_span, last.alignment = before, 2, "AlignCenter"
    else
      cells:insert(cell)
    end
  end
  if row then row.cells = cells end
end

-- A wide table scrolls by itself, so that a phone's page does not. In print, only a head is set
-- apart, and the table's place is left to report.typ.
local function Table(tbl)
  local head, bodies = tbl.head, tbl.bodies
  if typst then
    local heads, rows, simple = pandoc.List(head.rows), pandoc.List(), true
    for _, body in ipairs(bodies) do
      rows = rows .. body.body
      heads = heads .. body.head
    end
    for _, row in ipairs(heads .. rows) do
      for _, cell in ipairs(row.cells) do simple = simple and cell.col_span == 1 and cell.row_span == 1 end
    end
    local open = "#exhibit(breakable: true)["
    if simple and set_widths(tbl, heads, rows) then open = open .. "#show table: set text(7.5pt)\n" end
    if tbl.classes:includes("small") then open = open .. SMALL end
    if #heads == 0 then open = open .. "#set table(stroke: (..) => (bottom: 0.3pt + luma(200)))" end
    for _, row in ipairs(heads) do
      join_intervals(row)
      for _, cell in ipairs(row.cells) do cell.contents = cell.contents:walk({ Plain = bold, Para = bold }) end
    end
    tbl.head, tbl.bodies = head, bodies
    return { pandoc.RawBlock("typst", open), tbl, pandoc.RawBlock("typst", "]") }
  end
  if not html then return nil end
  for _, row in ipairs(head.rows) do join_intervals(row) end
  tbl.head = head
  return { pandoc.RawBlock("html", '<div class="scroll" tabindex="0">'), tbl, pandoc.RawBlock("html", "</div>") }
end

local function Figure(figure)
  if typst then return { pandoc.RawBlock("typst", "#exhibit["), figure, pandoc.RawBlock("typst", "]") } end
end

-- `share` is the picture's width as a share of the text's.
local function Image(image)
  local share = tonumber(image.attributes.share) or 1
  local number, unit = (image.attributes.width or ""):match("^([%d.]+)([%a%%]*)$")
  if tonumber(number) then share = math.min(share, number / (unit == "%" and 100 or 672)) end
  image.attributes.width = nil
  local alt = image.attributes.alt or pandoc.utils.stringify(image.caption)
  if typst then
    return pandoc.RawInline("typst", string.format(
      "#image(%s, alt: %s, width: %d%%)", typst_string(image.src), typst_string(alt), math.floor(100 * share + 0.5)))
  end
  image.attributes.share = nil
  if share < 1 then image.attributes.style = string.format("max-width: %d%%", math.floor(100 * share + 0.5)) end
  return image
end

local function Div(div)
  if typst and (div.classes:includes("figure") or div.classes:includes("table")) then
    -- The name is that of the exhibit itself, which may float to another page.
    for _, block in ipairs(div.content) do
      if block.t == "Figure" or block.t == "Table" then block.identifier = div.identifier end
    end
    return div.content
  end
  if typst and div.classes:includes("cover") then
    local blocks = pandoc.List(div.content)
    blocks:insert(pandoc.RawBlock("typst", "#contents()"))
    return blocks
  end
  if typst and div.identifier == "refs" then
    return { pandoc.RawBlock("typst", "#references["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
  if typst and div.classes:includes("note") then
    return { pandoc.RawBlock("typst", "#note["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
  if typst and div.classes:includes("abstract") then
    return { pandoc.RawBlock("typst", "#abstract["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
  if typst and div.classes:includes("failed") then
    return { pandoc.RawBlock("typst", "#failed["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
  if typst and div.classes:includes("subtitle") then
    return { pandoc.RawBlock("typst", "#subtitle["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
end

return {
  { Pandoc = join },
  { Str = Str, Math = Math, Inlines = Inlines, Blocks = Blocks, Table = Table, Figure = Figure, Image = Image, Div = Div },
}
